"""One training run in its folder: started or resumed, logged and saved as it goes."""

import dataclasses
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch

from model import checkpoint, fingerprints, lock
from model.bar import Bar
from model.checkpoint import Checkpoint, DataConfig, Origin, RunConfig
from model.data import Dataset
from model.errors import BadCheckpoint, BadData, BadSetting, NotANumber
from model.log import Log, is_due
from model.machine import Machine
from model.parts import Images, all_over
from model.signals import asked_to_stop
from model.training import Learner, StepReport
from model.vae import ModelConfig

SAVE_EVERY_S = 60.0


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

    Raises:  BadSetting if the folder holds something already, if the origin has another model, or if its weights have
             learnt from pictures that are to validate; BadData if the processes of the run have read different pictures
    """
    _require_same_pictures(config.data, machine)
    if origin is not None:
        _require_same_model(config.model, origin)
        _require_unseen_validation(config.data, dataset, origin)
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


def _require_same_pictures(data: DataConfig, machine: Machine | None) -> None:
    """Nothing, if all processes of a run have read the same pictures.

    Raises:  BadData
    """
    if machine is not None:
        mine = torch.tensor(list(bytes.fromhex(data.sha256)), dtype=torch.uint8)
        first, *others = (bytes(row.tolist()).hex() for row in machine.gathered(mine))
        for rank, sha256 in enumerate(others, 1):
            if sha256 != first:
                got = f"pictures of sha256 {sha256[:8]}… in process {rank}"
                raise BadData(f"{data.name}: got {got}, expected {first[:8]}… as in process 0")


def origin_of(folder: Path, found: Checkpoint, *, dataset: Dataset) -> Origin:
    """Where a run starts, if it does with the weights of the checkpoint that was found in a folder."""
    before = found.config.origin
    return Origin(
        folder.resolve().name,
        sha256=fingerprints.of_model(found.vae),
        same_test=_has_same_test(dataset, found) and (before is None or before.same_test),
        tests=(fingerprints.of_images(found.probe), *(before.tests if before else ())),
    )


def _has_same_test(dataset: Dataset, found: Checkpoint) -> bool:
    """Whether a run kept back the test pictures of this data: then it is the same, but perhaps for what validates."""
    return np.array_equal(_probe(dataset), found.probe)


def _probe(dataset: Dataset) -> Images:
    return dataset.test[all_over(len(dataset.test), most=checkpoint.PROBE_ROWS)]


def _require_same_model(model: ModelConfig, origin: Checkpoint) -> None:
    """Nothing, if a model can start from the weights of another run.

    Raises:  BadSetting if one of its settings is not that of the run
    """
    was, now = dataclasses.asdict(origin.config.model), dataclasses.asdict(model)
    for name in was:
        if was[name] != now[name]:
            raise BadSetting(f"{name}: got {now[name]}, expected {was[name]}, as the run has that it is to start from")


def _require_unseen_validation(data: DataConfig, dataset: Dataset, origin: Checkpoint) -> None:
    """Nothing, if no picture to validate on is one that the weights have learnt already.

    Raises:  BadSetting
    """
    if data.n_validation == 0:
        return
    got = f"validation: got {data.n_validation} pictures by seed {data.validation_seed}"
    before, earlier = origin.config.data, origin.config.origin
    if _has_same_test(dataset, origin):
        was = before.n_validation, before.validation_seed
        if (data.n_validation, data.validation_seed) != was:
            expected = f"0, or {was[0]} by seed {was[1]}" if was[0] else "0"
            learnt = "the run that this one is to start from has learnt from all others"
            raise BadSetting(f"{got}, expected {expected}: {learnt}")
        if dataset.is_validation_drawn and data.sha256 != before.sha256:
            learnt = "from other training pictures than these the same seed drew others, and these may have been learnt"
            raise BadSetting(f"{got}, expected 0: {learnt} by the run that this one is to start from")
    elif earlier is not None and fingerprints.of_images(_probe(dataset)) in earlier.tests:
        learnt = "from this data a run has learnt that came before the one that this one is to start from"
        raise BadSetting(f"{got}, expected 0: {learnt}")


def require_free(folder: Path) -> None:
    """Nothing, if a run can be started in a folder.

    Raises:  BadSetting if it holds something already
    """
    if _is_taken(folder):
        raise _taken(folder)


def _is_taken(folder: Path) -> bool:
    """Whether a place holds something: a run whose first step failed, or that was killed before its first save, is
    nothing.

    Raises:  BadSetting if another process is training such a run
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not checkpoint.is_unsaved(folder):
        return True
    lock.require_free(folder)
    return False


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
             run was started with other settings; BadData if the processes of the run have read different pictures
    """
    _require_same_pictures(config.data, machine)
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

    Saves where a line of the log ends, if the last save is longer ago than save_every_s, and at the end of the run.

    Raises:  NotANumber when a term or the gradient stops being finite; it names the last save. BadSetting if another
             process is training the run, or if its networks cannot be compiled
    """
    saved_at_s = time.monotonic()
    machine = learner.machine
    with ExitStack() as stack:
        asked = stack.enter_context(asked_to_stop())
        if machine.is_main:
            stack.enter_context(lock.held(folder))
        bar = stack.enter_context(Bar(learner, is_shown=has_bar and machine.is_main))
        log = stack.enter_context(Log(folder, learner)) if machine.is_main else None
        for report in _steps(folder, learner, dataset):
            bar.show(n=report.n, recon=report.recon, kl=report.kl)
            has_line = is_due(learner)
            if log is not None:
                log.add(report)
                if has_line:
                    ends_epoch = learner.step % learner.steps_per_epoch == 0
                    has_validation = ends_epoch and len(dataset.validation) > 0
                    log.write(validate=partial(learner.validate, dataset.validation) if has_validation else None)
            # Asked once a step, and of all processes: they must stop at the same one.
            stopping = machine.any(bool(asked))
            # After its line only, which a kill between would lose; in the middle of one, its first steps would be lost.
            is_late = has_line and machine.any(time.monotonic() - saved_at_s >= save_every_s)
            if stopping or is_late or learner.step == learner.steps:
                checkpoint.save(folder, learner)
                saved_at_s = time.monotonic()
            if stopping:
                break
        stopping = machine.any(bool(asked))  # the last save takes a while, in which they may have been asked too
    # Another process may have been asked: then this one answers as if it had been too.
    number = asked[0] if asked else signal.SIGINT
    return Outcome(step=learner.step, steps=learner.steps, signal_number=number if stopping else None)


def _steps(folder: Path, learner: Learner, dataset: Dataset) -> Iterator[StepReport]:
    """The learner's steps; where one fails, the error says what is left."""
    try:
        yield from learner.run(dataset.train)
    except NotANumber as error:
        saved = checkpoint.saved_step(folder)
        left = (
            f"nothing was saved before in {folder}, where another run may start"
            if saved is None
            else f"the last save, of step {saved}, is whole"
        )
        raise NotANumber(f"{error}; {left}") from error
