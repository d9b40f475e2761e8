"""What `vae-train fit` is to train, from the options that were given: a new run, or one to go on with."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model import checkpoint, lock, run
from model.checkpoint import Checkpoint, DataConfig, RunConfig
from model.data import Dataset
from model.errors import BadSetting
from model.machine import Machine
from model.origin import AS_THE_ORIGIN, origin_of
from model.settings import require_same
from model.training import Learner, TrainConfig, require_compatible
from model.vae import ModelConfig

# What an autoencoder has no use for: its point has no scale, and its loss no KL term.
_OF_A_DENSITY = ("scale_head", "beta", "beta_schedule", "kl_warmup_epochs", "free_bits")


@dataclasses.dataclass(frozen=True)
class Asked:
    """The options that were given; one that was not is None, or absent from the fields of a config."""

    model: Mapping[str, Any]
    training: Mapping[str, Any]
    size: tuple[int, int] | None = None
    channels: int | None = None
    n_validation: int | None = None
    validation_seed: int | None = None
    start_from: Path | None = None

    def of_config(self) -> dict[str, Any]:
        """Those that the config of a run may contradict before any picture is read."""
        height_and_width = None if self.size is None else "x".join(map(str, self.size))
        origin = None if self.start_from is None else self.start_from.resolve().name
        others = {"size": height_and_width, "channels": self.channels, "start_from": origin}
        given = {name: value for name, value in others.items() if value is not None}
        return {**self.model, **self.training, **given}


@dataclasses.dataclass(frozen=True)
class NewRun:
    """A run to start, but for its pictures, which may take hours to read.

    Shapes:  size (h, w), or None as channels, where that of the pictures is to be taken
    """

    model: ModelConfig
    """Of the size that is asked for, or of any."""
    training: TrainConfig
    size: tuple[int, int] | None
    channels: int | None
    n_validation: int
    validation_seed: int
    start_from: tuple[Path, Checkpoint] | None
    """The run whose weights it starts from, and those."""

    def learner(self, folder: Path, dataset: Dataset, *, machine: Machine) -> tuple[Learner, list[str]]:
        """The learner at its first step, in a folder that is made for it, and what to warn of.

        Raises:  as `run.start`
        """
        height, width, channels = dataset.image_shape
        config = RunConfig(
            model=dataclasses.replace(self.model, height=height, width=width, channels=channels),
            training=self.training,
            data=DataConfig.of(dataset, validation_seed=self.validation_seed),
        )
        found = None
        if self.start_from is not None:
            place, found = self.start_from
            config = dataclasses.replace(config, origin=origin_of(place, found, dataset=dataset))
        learner = run.start(folder, config, dataset=dataset, origin=found, machine=machine)
        return learner, run.cut_warm_ups(learner)


@dataclasses.dataclass(frozen=True)
class ResumedRun:
    """A run to go on with, but for its pictures: `stored` is what it was started as."""

    stored: RunConfig
    n_validation: int
    validation_seed: int

    @property
    def training(self) -> TrainConfig:
        """How it learns."""
        return self.stored.training

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return self.stored.model.height, self.stored.model.width

    @property
    def channels(self) -> int:
        """Of its pictures."""
        return self.stored.model.channels

    def learner(self, folder: Path, dataset: Dataset, *, machine: Machine) -> tuple[Learner, list[str]]:
        """The learner at the last save in its folder, and what to warn of.

        Raises:  as `run.resume`
        """
        data = DataConfig.of(dataset, validation_seed=self.validation_seed)
        learner = run.resume(folder, dataclasses.replace(self.stored, data=data), machine=machine)
        changes = run.changed_machine(folder, learner)
        return learner, [f"{change}; the last digits may differ from now on" for change in changes]


def to_start(folder: Path, asked: Asked) -> NewRun:
    """A new run, from random weights or those of another one, whose networks it then has.

    Raises:  BadSetting that names an option which makes no run, or if the folder holds something; BadCheckpoint if the
             other run cannot be read
    """
    run.require_empty(folder)
    start_from = None
    size, channels = asked.size, asked.channels
    if asked.start_from is None:
        height, width = size or (1, 1)
        model = ModelConfig(height, width, channels or 1, **_with_sigma_of(asked.model))
    else:
        found = checkpoint.read(asked.start_from)
        start_from, model = (asked.start_from, found), found.config.model
        require_same(asked.of_config(), _told(model), why=AS_THE_ORIGIN)
        size, channels = (model.height, model.width), model.channels
    training = TrainConfig(**asked.training)
    _require_possible(asked, model, training)
    return NewRun(
        model=model,
        training=training,
        size=size,
        channels=channels,
        n_validation=asked.n_validation or 0,
        validation_seed=asked.validation_seed or 0,
        start_from=start_from,
    )


def to_resume(folder: Path, asked: Asked) -> ResumedRun:
    """The run in a folder, as it was started.

    Raises:  BadSetting if an option asks for another run, or the run is being trained; BadCheckpoint if there is none
    """
    stored = checkpoint.read_config(folder)
    was = _told(stored.model) | vars(stored.training) | {"start_from": stored.origin and stored.origin.name}
    require_same(asked.of_config(), was, why=f"with which {folder} was started")
    lock.require_idle(folder)
    _require_possible(asked, stored.model, stored.training)
    data = stored.data
    return ResumedRun(
        stored,
        n_validation=data.n_validation if asked.n_validation is None else asked.n_validation,
        validation_seed=data.validation_seed if asked.validation_seed is None else asked.validation_seed,
    )


def _told(model: ModelConfig) -> dict[str, Any]:
    """The settings of a model by the names of their options."""
    return vars(model) | {"size": f"{model.height}x{model.width}"}


def _with_sigma_of(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings that were given; only a gaussian has a sigma by default."""
    return given if given.get("likelihood", "gaussian") == "gaussian" else {"sigma": None, **given}


def _require_possible(asked: Asked, model: ModelConfig, training: TrainConfig) -> None:
    """Nothing, if a model can be trained so.

    Raises:  BadSetting
    """
    given = asked.of_config()
    if model.family == "autoencoder":
        for name in _OF_A_DENSITY:
            if name in given:
                got = f"got {given[name]} with an autoencoder"
                raise BadSetting(
                    f"{name}: {got}, expected none: its posterior is a point, which has no scale and no KL term"
                )
    require_compatible(model, training)
