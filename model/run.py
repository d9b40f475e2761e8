"""One training run in its folder: started or resumed, logged and saved as it goes, measured and drawn at its end."""

import dataclasses
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np
import torch
from tqdm import tqdm

from model import card, checkpoint, fingerprints, pictures
from model.checkpoint import Checkpoint, DataConfig, RunConfig
from model.data import Dataset
from model.errors import BadCheckpoint, BadData, BadSetting, NotANumber
from model.evaluation import evaluate
from model.generation import Generation, generate
from model.log import Log, read_history
from model.machine import Machine, exact_convolutions
from model.nll import SAMPLES, Precision, estimate, protocol_of
from model.parts import Images, all_over
from model.training import Learner, StepReport
from model.vae import ModelConfig

SAVE_EVERY_S = 60.0
# Latents of the fitted prior that a picture shows.
_SHOWN = 200


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Where a run ended: at its last step, or where a signal stopped it."""

    step: int
    steps: int
    signal_number: int | None


def start(
    folder: Path,
    config: RunConfig,
    *,
    dataset: Dataset,
    origin: Checkpoint | None = None,
    machine: Machine | None = None,
) -> Learner:
    """A learner at step 0, with random weights or those of config.origin, in a folder that is made for it.

    Raises:  BadSetting if the folder holds something already, or if the origin has another model or other pictures to
             validate on
    """
    if origin is not None:
        require_same_model(config.model, origin)
        if has_same_test(dataset, origin):
            _require_unseen_validation(config.data, origin.config.data)
    learner = Learner(config.model, training=config.training, n_images=len(dataset.train), machine=machine)
    # All processes look before one writes.
    if learner.machine.any(_is_taken(folder)):
        raise _taken(folder)
    if origin is not None:  # saved before the folder is a run's, which would else be resumed from random weights
        learner.start_from(origin.vae)
        checkpoint.save(folder, learner)
    if learner.machine.is_main:
        checkpoint.write_config(folder, config, probe=_probe(dataset))
    return learner


def has_same_test(dataset: Dataset, found: Checkpoint) -> bool:
    """Whether a run kept back the test pictures of this data: then it is the same, but perhaps for what validates."""
    return np.array_equal(_probe(dataset), found.probe)


def _probe(dataset: Dataset) -> Images:
    return dataset.test[all_over(len(dataset.test), most=checkpoint.PROBE_ROWS)]


def require_same_model(model: ModelConfig, origin: Checkpoint) -> None:
    """Nothing, if a model can start from the weights of another run.

    Raises:  BadSetting if one of its settings is not that of the run
    """
    was, now = dataclasses.asdict(origin.config.model), dataclasses.asdict(model)
    for name in was:
        if was[name] != now[name]:
            raise BadSetting(f"{name}: got {now[name]}, expected {was[name]}, as the run has that it is to start from")


def _require_unseen_validation(data: DataConfig, origin: DataConfig) -> None:
    """Nothing, if of one data set no picture to validate on is one that the weights have learnt already."""
    choice, was = ((c.n_validation, c.validation_seed) for c in (data, origin))
    if data.n_validation > 0 and choice != was:
        expected = f"0, or {was[0]} by seed {was[1]}" if was[0] else "0"
        raise BadSetting(
            f"validation: got {choice[0]} pictures by seed {choice[1]}, expected {expected}:"
            " the run that this one is to start from has learnt from all others"
        )


def require_free(folder: Path) -> None:
    """Nothing, if a run can be started in a folder.

    Raises:  BadSetting if it holds something already
    """
    if _is_taken(folder):
        raise _taken(folder)


def _is_taken(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _taken(folder: Path) -> BadSetting:
    how = ", or --resume to go on" if (folder / "config.json").exists() else ""
    return BadSetting(f"{folder}: got a place with something in it, expected a new folder{how}")


def cut_warm_ups(learner: Learner) -> list[str]:
    """What of the settings the run is too short for, a sentence each."""
    training = learner.training
    cut = []
    if training.lr_warmup_steps >= learner.steps:
        cut.append(
            f"lr_warmup_steps is {training.lr_warmup_steps} and the run has {learner.steps} steps:"
            f" the learning rate never comes to {training.learning_rate:g}"
        )
    if learner.vae.config.family == "vae" and training.kl_warmup_epochs >= training.epochs and training.beta:
        cut.append(
            f"kl_warmup_epochs is {training.kl_warmup_epochs:g} and the run has {training.epochs} epochs:"
            f" the KL term never has its full weight"
        )
    return cut


def resume(folder: Path, config: RunConfig, *, machine: Machine | None = None) -> Learner:
    """A learner at the step of the last save.

    Raises:  BadCheckpoint if the folder holds no run, or has lost the weights that it started from; BadSetting if its
             run was started with other settings
    """
    require_same(folder, config)
    if config.origin is not None and checkpoint.saved_step(folder) is None:
        raise BadCheckpoint(f"{folder}: got no state, expected at least the weights of {config.origin.name}")
    learner = Learner(config.model, training=config.training, n_images=config.data.n_train, machine=machine)
    checkpoint.load_state(folder, learner)
    return learner


def require_same(folder: Path, config: RunConfig) -> None:
    """Nothing, if the run in a folder was started with these settings.

    Raises:  BadCheckpoint if the folder holds no run; BadSetting if its run was started with other settings
    """
    stored = checkpoint.read_config(folder)
    was, now = (
        {
            **dataclasses.asdict(c.model),
            **dataclasses.asdict(c.training),
            "validation": c.data.n_validation,
            "validation_seed": c.data.validation_seed,
            "start_from": c.origin and c.origin.name,
        }
        for c in (stored, config)
    )
    for name in was:
        if was[name] != now[name]:
            raise BadSetting(f"{name}: got {now[name]}, expected {was[name]}, with which {folder} was started")
    if stored.data.sha256 != config.data.sha256:  # whatever its name: a folder may have moved
        got, expected = (
            f"{c.data.name} ({c.data.n_train} pictures to train on, {c.data.n_test} to test with,"
            f" sha256 {c.data.sha256[:8]}…)"
            for c in (config, stored)
        )
        raise BadSetting(f"data: got {got}, expected {expected}, with which {folder} was started")


def changed_machine(folder: Path, learner: Learner) -> list[str]:
    """What differs from the machine of the last save, a phrase each: the last digits of a resumed run may too."""
    now = learner.machine.facts()
    was = checkpoint.machine_facts(folder)
    return [f"{name} was {was[name]}, is {now[name]}" for name in was if was[name] != now[name]]


def train(
    folder: Path, learner: Learner, dataset: Dataset, *, save_every_s: float = SAVE_EVERY_S, has_bar: bool = True
) -> Outcome:
    """Steps to the end of the run, with a progress bar unless others show it; SIGINT and SIGTERM save and stop.

    Saves at the end of an epoch, if the last save is longer ago than save_every_s, and at the end of the run.

    Raises:  NotANumber when a term or the gradient stops being finite; it names the last save
    """
    saved_at_s = time.monotonic()
    machine = learner.machine
    with ExitStack() as stack:
        asked = stack.enter_context(asked_to_stop())
        bar = stack.enter_context(_Bar(learner, is_shown=has_bar and machine.is_main))
        log = stack.enter_context(Log(folder, learner)) if machine.is_main else None
        for report in _steps(folder, learner, dataset):
            bar.show(n=report.n, recon=report.recon, kl=report.kl)
            ends_epoch = learner.step % learner.steps_per_epoch == 0
            if log is not None:
                log.add(report)
                if log.is_due:
                    has_validation = ends_epoch and len(dataset.validation) > 0
                    log.write(validation=learner.validate(dataset.validation) if has_validation else None)
            # Asked once a step, and of all processes: they must stop at the same one.
            stopping = machine.any(bool(asked))
            is_late = ends_epoch and machine.any(time.monotonic() - saved_at_s >= save_every_s)
            if stopping or is_late or learner.step == learner.steps:
                checkpoint.save(folder, learner)
                saved_at_s = time.monotonic()
            if stopping:
                break
        stopping = machine.any(bool(asked))  # the last save takes a while, in which they may have been asked too
    # Another process may have been asked: then this one answers as if it had been too.
    number = asked[0] if asked else signal.SIGINT
    return Outcome(step=learner.step, steps=learner.steps, signal_number=number if stopping else None)


@dataclasses.dataclass(frozen=True)
class NllRequest:
    """How log p(x) is to be estimated."""

    images: int | None = None
    """Test pictures, or all."""
    draws: int = 1
    """Times that each is binarised or dequantised anew."""
    samples: tuple[int, ...] = SAMPLES
    """Draws of z after which an estimate is read off."""
    precision: Precision = "fp32"
    """Of the decoder."""

    def settings(self) -> dict[str, Any]:
        """As `estimate` takes them."""
        return {
            "n_images": self.images,
            "draws": self.draws,
            "samples": self.samples,
            "precision": self.precision,
        }


@exact_convolutions()
def measure(
    folder: Path,
    *,
    dataset: Dataset,
    draws: int = 1,
    seed: int = 0,
    nll: NllRequest | None = None,
    machine: Machine | None = None,
) -> dict[str, Any]:
    """The metrics of the checkpoint in a folder, written into it with a fitted prior, pictures and a card.

    An estimate of log p(x) goes on where an earlier one of the same protocol stopped; without a request, the estimate
    of an earlier evaluation of these weights on these pictures is kept. `metrics.json` comes last: where it stands,
    prior, pictures and card are of the weights that it names, too.

    Raises:  BadCheckpoint if there is none; BadData if the pictures have another shape; BadSetting if the model has no
             p(x) to estimate
    """
    found = checkpoint.read(folder)
    got, expected = dataset.image_shape, found.config.model.image_shape
    if got != expected:
        raise BadData(f"{dataset.name}: got pictures of shape {got}, expected {expected} as {folder} was trained on")
    if machine is not None:
        found.vae.to(machine.device)
    if nll is not None:  # refused now, if it cannot be, and not after minutes of other figures
        protocol_of(found.vae, dataset.test, **nll.settings(), seed=seed)
    metrics = evaluate(found.vae, dataset.test, data=dataset.name, draws=draws, seed=seed)
    metrics["protocol"]["of_the_run"] = dataset.sha256 == found.config.data.sha256
    generation = generate(found.vae, training=dataset.train, test=dataset.test, seed=seed)
    metrics["samples"] = generation.metrics if generation else None
    metrics["nll"] = (
        _kept_nll(folder, found, dataset) if nll is None else _estimated_nll(folder, found, dataset, nll, seed=seed)
    )
    fitted = generation.fitted if generation else None
    checkpoint.withdraw_metrics(folder)
    checkpoint.write_prior(folder, fitted.tensors() if fitted else None)
    _report(folder, found, dataset, metrics=metrics, generation=generation)
    checkpoint.write_metrics(folder, metrics)
    return metrics


def _estimated_nll(
    folder: Path, found: Checkpoint, dataset: Dataset, request: NllRequest, *, seed: int
) -> dict[str, Any]:
    return estimate(
        found.vae,
        dataset.test,
        **request.settings(),
        seed=seed,
        state=folder / "state" / "nll.safetensors",
    ).metrics()


def _kept_nll(folder: Path, found: Checkpoint, dataset: Dataset) -> dict[str, Any] | None:
    """The estimate of an earlier evaluation, if these are the weights and pictures that it was made with."""
    kept: dict[str, Any] | None = (found.metrics or checkpoint.withdrawn_metrics(folder) or {}).get("nll")
    if not kept:
        return None
    protocol = kept["protocol"]
    was = protocol["model_sha256"], protocol["data_sha256"]
    return kept if was == (fingerprints.of_model(found.vae), fingerprints.of_images(dataset.test)) else None


def _report(
    folder: Path, found: Checkpoint, dataset: Dataset, *, metrics: dict[str, Any], generation: Generation | None
) -> None:
    """`pictures/` and `card.md`."""
    saved = checkpoint.saved_step(folder)
    # What was logged after the last save is of weights that are lost.
    history = [line for line in read_history(folder) if saved is None or line["step"] <= saved]
    fitted_z = None
    if generation and generation.fitted:
        fitted_z = generation.fitted.sample(_SHOWN, generator=torch.Generator().manual_seed(0))
    drawn = pictures.write_all(
        folder / "pictures",
        found.vae,
        dataset.test,
        metrics=metrics,
        history=history,
        labels=dataset.test_labels,
        fitted_z=fitted_z,
        nearest=generation.nearest if generation else None,
    )
    card.write(
        folder,
        found.config,
        metrics=metrics,
        pictures=drawn,
        n_weights=sum(weight.numel() for weight in found.vae.parameters()),
        history=history,
        machine=checkpoint.machine_facts(folder),
    )


def _steps(folder: Path, learner: Learner, dataset: Dataset) -> Iterator[StepReport]:
    """The learner's steps; where one fails, the error says what is left."""
    try:
        yield from learner.run(dataset.train)
    except NotANumber as error:
        saved = checkpoint.saved_step(folder)
        left = (
            f"nothing was saved before in {folder}, which may go"
            if saved is None
            else f"the last save, of step {saved}, is whole"
        )
        raise NotANumber(f"{error}; {left}") from error


@contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """A list that a first SIGINT or SIGTERM puts its number into; a second one kills, as ever."""
    asked: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        restore()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield asked
    finally:
        restore()


class _Bar:
    """The progress of a run: images/s, and the terms that it learns by, averaged over about the last hundred steps."""

    def __init__(self, learner: Learner, *, is_shown: bool) -> None:
        self._learner = learner
        self._is_shown = is_shown
        self._shown_s = 0.0
        self._recon = self._kl = self._weight = 0.0

    def __enter__(self) -> Self:
        learner = self._learner
        self._bar = tqdm(
            total=learner.n_images * learner.training.epochs,
            initial=learner.images_seen,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not self._is_shown,
        )
        return self

    def show(self, *, n: int, recon: float, kl: float) -> None:
        """Move on by n images; the numbers are written a few times a second."""
        self._recon, self._kl, self._weight = (
            0.99 * mean + 0.01 * value for mean, value in ((self._recon, recon), (self._kl, kl), (self._weight, 1.0))
        )
        if time.monotonic() - self._shown_s > 0.2 or self._learner.step == self._learner.steps:
            self._shown_s = time.monotonic()
            recon, kl = self._recon / self._weight, self._kl / self._weight
            epoch = (self._learner.step - 1) // self._learner.steps_per_epoch + 1
            self._bar.set_description(f"epoch {epoch}/{self._learner.training.epochs}", refresh=False)
            has_bound = self._learner.vae.config.family == "vae"
            terms = f"elbo {-(recon + kl):.2f}, recon {recon:.2f}, kl {kl:.2f}" if has_bound else f"recon {recon:.2f}"
            self._bar.set_postfix_str(terms, refresh=False)
        self._bar.update(n)

    def __exit__(self, *_: object) -> None:
        self._bar.close()
