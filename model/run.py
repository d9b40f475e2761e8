"""One training run in its folder: started or resumed, logged and saved as it goes."""

import dataclasses
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from model import checkpoint, lock
from model.bar import Bar
from model.checkpoint import Checkpoint, DataConfig, RunConfig, probe_of
from model.data import Dataset
from model.errors import BadCheckpoint, BadData, BadSetting, NotANumber
from model.log import Log, is_due
from model.machine import Machine
from model.origin import require_same_model, require_unseen_validation
from model.settings import require_same as require_same_settings
from model.signals import asked_to_stop
from model.training import Learner, StepReport

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
        require_same_model(config.model, origin)
        require_unseen_validation(config.data, dataset, origin)
    learner = Learner(config.model, training=config.training, n_images=len(dataset.train), machine=machine)
    # All processes look before one writes.
    if learner.machine.any(_is_taken(folder)):
        raise _taken(folder)
    if origin is not None:  # saved before the folder is a run's, which would else be resumed from random weights
        learner.start_from(origin.vae)
        checkpoint.save(folder, learner)
    if learner.machine.is_main:
        checkpoint.write_config(folder, config, probe=probe_of(dataset))
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


def require_empty(folder: Path) -> None:
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
    lock.require_idle(folder)
    return False


def _taken(folder: Path) -> BadSetting:
    how = ", or --resume to go on" if (folder / "config.json").exists() else ""
    return BadSetting(f"{folder}: got a folder or file that holds something, expected a new folder{how}")


def cut_warm_ups(learner: Learner) -> list[str]:
    """What of the settings the run is too short for, a sentence each."""
    training, epochs = learner.training, learner.training.epochs
    cut = []
    if training.lr_warmup_steps >= learner.steps:
        enough = training.lr_warmup_steps // learner.steps_per_epoch + 1
        cut.append(
            f"the learning rate rises over {training.lr_warmup_steps} steps (--lr-warmup-steps) and the run has"
            f" {learner.steps}: it never comes to {training.learning_rate:g}, as it would with --epochs {enough}"
        )
    if learner.vae.config.family == "vae" and training.kl_warmup_epochs >= epochs and training.beta:
        cut.append(
            f"the weight of the KL term rises over {training.kl_warmup_epochs:g} epochs (--kl-warmup-epochs) and the"
            f" run has {epochs}: it never comes to {training.beta:g}, as it would with"
            f" --epochs {int(training.kl_warmup_epochs) + 1}"
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
    require_same_settings(_by_option(config), _by_option(stored), why=f"with which {folder} was started")
    if stored.data.sha256 != config.data.sha256:  # whatever its name: a folder may have moved
        got, expected = (
            f"{c.data.name} ({c.data.n_train} pictures to train on, {c.data.n_test} to test with,"
            f" sha256 {c.data.sha256[:8]}…)"
            for c in (config, stored)
        )
        raise BadSetting(f"data: got {got}, expected {expected}, with which {folder} was started")


def _by_option(config: RunConfig) -> dict[str, Any]:
    return {
        **vars(config.model),
        **vars(config.training),
        "validation": config.data.n_validation,
        "validation_seed": config.data.validation_seed,
        "start_from": config.origin and config.origin.name,
    }


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
