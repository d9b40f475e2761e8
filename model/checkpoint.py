"""A training run on disk: config, weights, state and figures in one folder, as JSON and tensors only."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from model.data import Dataset
from model.errors import BadCheckpoint
from model.files import write_together, write_whole
from model.parts import Images, all_over
from model.training import Learner, TrainConfig
from model.vae import VAE, ModelConfig

FORMAT = 2
PROBE_ROWS = 64

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_STATE = "state/training.safetensors"
_MACHINE = "state/machine.json"
_METRICS = "metrics.json"
_WITHDRAWN = "state/metrics.json"
_PROBE = "probe.safetensors"
_PRIOR = "prior.safetensors"


@dataclass(frozen=True)
class DataConfig:
    """Which pictures a run learnt from."""

    name: str
    """Name of the folder or file."""
    n_train: int
    """Pictures trained on."""
    n_validation: int
    """Pictures that the averaged weights are measured on after each epoch."""
    validation_seed: int
    """What drew them from the training pictures, where the data has no such part of its own."""
    n_test: int
    """Pictures kept back."""
    sha256: str
    """Hash over all of them, as `model.data.Dataset` computes it."""

    @classmethod
    def of(cls, dataset: Dataset, *, validation_seed: int) -> Self:
        """What a data set is to a run."""
        return cls(
            name=dataset.name,
            n_train=len(dataset.train),
            n_validation=len(dataset.validation),
            validation_seed=validation_seed,
            n_test=len(dataset.test),
            sha256=dataset.sha256,
        )


@dataclass(frozen=True)
class Origin:
    """The run whose averaged weights another one started from."""

    name: str
    """Name of its folder."""
    sha256: str
    """Hash of its model, as `model.fingerprints.of_model` computes it."""
    same_test: bool
    """Whether its test pictures are this run's, and those of all before it too, so that none had learnt from them."""
    tests: tuple[str, ...] = ()
    """Hashes of a few test pictures of each, the probe: its own first, then those of the runs before it."""


Config = TypeVar("Config", ModelConfig, TrainConfig, DataConfig, Origin)


@dataclass(frozen=True)
class RunConfig:
    """All that a run is, apart from its tensors."""

    model: ModelConfig
    training: TrainConfig
    data: DataConfig
    origin: Origin | None = None
    """Where its weights started; at random ones, if nowhere."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint that was read: the averaged weights in a VAE that is ready to be evaluated or exported.

    Shapes:  probe (n, h, w, c) uint8, a few test pictures
    """

    config: RunConfig
    vae: VAE
    probe: Images
    metrics: dict[str, Any] | None


def probe_of(dataset: Dataset) -> Images:
    """A few test pictures from all over a data set: they tell it from others, and a bundle is proven on them."""
    return dataset.test[all_over(len(dataset.test), most=PROBE_ROWS)]


def read(folder: Path) -> Checkpoint:
    """The checkpoint in a folder; reading it executes no code of its own.

    Raises:  BadCheckpoint with a sentence that names the file, got and expected
    """
    config = read_config(folder)
    vae = VAE(config.model)
    tensors = _read_tensors(folder / _WEIGHTS)
    _check_shapes(folder / _WEIGHTS, got=tensors, expected=vae.state_dict())
    vae.load_state_dict(tensors)
    vae.eval().requires_grad_(False)
    probe = _read_tensors(folder / _PROBE).get("images", torch.empty(0))
    if probe.dtype != torch.uint8 or probe.shape[1:] != config.model.image_shape or not len(probe):
        got = f"{probe.dtype} of shape {tuple(probe.shape)}"
        expected = f"uint8 of shape (n, {', '.join(map(str, config.model.image_shape))}), n from 1"
        raise BadCheckpoint(f"{folder / _PROBE}, images: got {got}, expected {expected}")
    return Checkpoint(
        config=config,
        vae=vae,
        probe=probe.numpy(),
        metrics=_read_json(folder / _METRICS) if (folder / _METRICS).exists() else None,
    )


def read_config(folder: Path) -> RunConfig:
    """What the run in a folder is, without its tensors.

    Raises:  BadCheckpoint with a sentence that names the file, got and expected
    """
    path = folder / _CONFIG
    content = _read_json(path)
    if content.get("format") != FORMAT:
        raise BadCheckpoint(f"{path}: got format {content.get('format')!r}, expected {FORMAT}")
    origin = content.get("origin")
    if isinstance(origin, dict):  # runs were written without `tests` at first
        content["origin"] = {"tests": [], **origin}
    return RunConfig(
        model=_parse(path, "model", content, kind=ModelConfig),
        training=_parse(path, "training", content, kind=TrainConfig),
        data=_parse(path, "data", content, kind=DataConfig),
        origin=None if origin is None else _parse(path, "origin", content, kind=Origin),
    )


def write_config(folder: Path, config: RunConfig, *, probe: Images) -> None:
    """The files of a run that never change, in a folder that is made for them.

    Shapes:  probe (n, h, w, c)
    """
    write_together(
        {
            folder / _PROBE: _tensors({"images": torch.from_numpy(np.ascontiguousarray(probe))}),
            folder / _CONFIG: _json({"format": FORMAT, **dataclasses.asdict(config)}),
        }
    )


def save(folder: Path, learner: Learner) -> None:
    """The weights that are evaluated and exported, then the state that a resumed run starts from.

    A disk that is full leaves the save before. The state alone is what resuming reads, and it gets its name last: a run
    whose last state is there has nothing left to do, so its weights have to be there too. All processes of a run come
    here together; one writes. What was told of the weights before is withdrawn.
    """
    state = learner.state()
    if learner.machine.is_main:
        write_together(
            {
                folder / _WEIGHTS: _tensors(learner.average.state_dict()),
                folder / _MACHINE: _json(learner.machine.facts()),
                folder / _STATE: _tensors(state),
            }
        )
        withdraw_metrics(folder)


def saved_step(folder: Path) -> int | None:
    """The step of the last save; none before the first.

    Raises:  BadCheckpoint if the state cannot be read
    """
    return int(_read_tensors(folder / _STATE, only="step")["step"]) if (folder / _STATE).exists() else None


def is_unsaved(folder: Path) -> bool:
    """Whether a folder holds a run that has never been saved, and nothing else."""
    begun = {_CONFIG, _PROBE, "metrics.jsonl", "tensorboard", "state"}
    return (
        folder.is_dir()
        and (folder / _CONFIG).exists()
        and {path.name for path in folder.iterdir()} <= begun
        and not (folder / _STATE).exists()
    )


def machine_facts(folder: Path) -> dict[str, Any]:
    """What the machine of the last save was, as `Machine.facts` says it; empty before the first.

    Raises:  BadCheckpoint if the file cannot be read
    """
    return _read_json(folder / _MACHINE) if (folder / _MACHINE).exists() else {}


def load_state(folder: Path, learner: Learner) -> None:
    """Put a learner where the last save of its run stood; without a save, it stays at its start.

    Raises:  BadCheckpoint if the state is not this learner's
    """
    path = folder / _STATE
    if path.exists():
        tensors, expected = _read_tensors(path), learner.state()
        noise = tensors.get("noise")
        if noise is not None and noise.ndim == 2 and noise.shape[1] != expected["noise"].shape[1]:
            was = machine_facts(folder).get("device", "another device")
            expected_kind = f"the same kind of device, not {learner.machine.device.type}: others draw other noise"
            raise BadCheckpoint(f"{path}: got the state of a run on {was}, expected {expected_kind}")
        _check_shapes(path, got=tensors, expected=expected)
        learner.load_state(tensors)


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """What an evaluation found, beside the weights it was found with."""
    _write_json(folder / _METRICS, metrics)
    (folder / _WITHDRAWN).unlink(missing_ok=True)


def withdraw_metrics(folder: Path) -> None:
    """Nothing is told of the checkpoint, until it has been measured anew: what was told spoke of an earlier prior,
    pictures and card. It is kept aside for `withdrawn_metrics`.
    """
    if (folder / _METRICS).exists():
        (folder / _WITHDRAWN).parent.mkdir(exist_ok=True)
        (folder / _METRICS).replace(folder / _WITHDRAWN)


def withdrawn_metrics(folder: Path) -> dict[str, Any] | None:
    """What was told before an evaluation that did not come to its end.

    Raises:  BadCheckpoint if the file cannot be read
    """
    return _read_json(folder / _WITHDRAWN) if (folder / _WITHDRAWN).exists() else None


def write_prior(folder: Path, tensors: Mapping[str, Tensor] | None) -> None:
    """The fitted prior that an evaluation kept; without one, an earlier one goes, for it belonged to other weights."""
    if tensors is None:
        (folder / _PRIOR).unlink(missing_ok=True)
    else:
        _write_tensors(folder / _PRIOR, tensors)


def _parse(path: Path, part: str, content: Mapping[str, Any], *, kind: type[Config]) -> Config:
    fields = content.get(part)
    names = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(fields, dict) or fields.keys() != names:
        got = ", ".join(sorted(fields)) if isinstance(fields, dict) else repr(fields)
        raise BadCheckpoint(f"{path}, {part}: got {got}, expected {', '.join(sorted(names))}")
    # JSON has no tuples.
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise BadCheckpoint(f"{path}, {part}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadCheckpoint(f"{path}: got {error.strerror}, expected a file that vae-train wrote") from error
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path}: got something else, expected JSON ({error})") from error
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{path}: got {type(content).__name__}, expected a JSON object")
    return content


def _read_tensors(path: Path, *, only: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file by name: all, or one of them, whatever else there is."""
    try:
        path.open("rb").close()  # whose error tells more
        if only is None:
            return safetensors.torch.load_file(path)
        with safetensors.safe_open(path, framework="pt") as file:
            return {only: file.get_tensor(only)}
    except OSError as error:
        raise BadCheckpoint(f"{path}: got {error.strerror or error}, expected a file that vae-train wrote") from error
    except safetensors.SafetensorError as error:
        raise BadCheckpoint(f"{path}: got something else, expected whole safetensors ({error})") from error


def _check_shapes(path: Path, *, got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name in sorted(got.keys() | expected.keys()):
        found, wanted = (f"{t[name].dtype} {tuple(t[name].shape)}" if name in t else "none" for t in (got, expected))
        if found != wanted:
            raise BadCheckpoint(f"{path}, {name}: got {found}, expected {wanted}")


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_whole(path, _tensors(tensors))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, _json(content))


def _tensors(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
