"""The work of a study in processes of one thread each: runs trained, resumed and measured, one to a core."""

import json
import math
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from tqdm import tqdm

from model import bar, checkpoint, fingerprints, measuring, memory, run
from model.data import Dataset
from model.errors import Died, NotANumber
from model.files import write_whole
from model.log import read_history
from model.machine import Machine, exact_convolutions, join
from model.signals import asked_to_stop
from model.study import classifier as classifiers
from model.study import numbers, stored
from model.study.classifier import Classifier, Skill
from model.study.plan import PLANE, Member, Plan

_TICK_S = 0.5
# Of the time that a run takes, as on Fashion-MNIST: training, its own evaluation, the study's numbers.
_TRAINED, _EVALUATED, _MEASURED = 0.86, 0.09, 0.05

# Counts up where numbers are measured in another way, so that none of the old way is kept beside them.
_EDITION = 4

_plan: Plan
_stopping: Event
_at_work = threading.Lock()


def is_trained(folder: Path, member: Member) -> bool:
    """Whether a run has come to its last step."""
    training = member.config.training
    steps = -(-member.config.data.n_train // training.batch_size) * training.epochs
    return checkpoint.saved_step(folder) == steps


def is_measured_on(folder: Path, dataset: Dataset) -> bool:
    """Whether the figures of a run are of its weights and of a data set's test pictures: whoever has the run may have
    measured it before its end, or on others.
    """
    found = checkpoint.read(folder)
    expected = {"model_sha256": fingerprints.of_model(found.vae), "data_sha256": fingerprints.of_images(dataset.test)}
    return found.metrics is not None and expected.items() <= found.metrics["protocol"].items()


class Work:
    """A study's processes, and a progress bar over all that they do."""

    def __init__(self, plan: Plan, *, folder: Path, device: str) -> None:
        self._plan, self._folder, self._device = plan, folder, device
        self._jobs = 1 if device == "cuda" else torch.get_num_threads()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._asked = stack.enter_context(asked_to_stop())
            stack.enter_context(_one_thread_each())
            arrays = stack.enter_context(_arrays(self._folder))
            context = multiprocessing.get_context("spawn")
            self._stop = context.Event()
            self._bar = stack.enter_context(_Bar(self._plan, self._folder))
            self._pool = stack.enter_context(
                ProcessPoolExecutor(
                    self._jobs,
                    context,
                    initializer=_begin,
                    initargs=(stored.store(self._plan, arrays), arrays, self._stop),
                )
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def train(self) -> int | None:
        """Train and evaluate what has not been; the number of the signal that stopped it, or None at its end."""
        return self.do(
            [
                partial(_classify, self._folder),
                *(partial(_train, self._folder, member, self._device) for member in self._plan.members),
            ]
        )

    def measure(self) -> int | None:
        """The numbers of every run; the number of the signal that stopped it, or None at its end."""
        return self.do(
            [
                *(partial(_measure, self._folder, member, self._device) for member in self._plan.members),
                *(partial(_reference, self._folder, d, self._device) for d in (PLANE, self._plan.settings.latent_dim)),
            ]
        )

    def do(self, jobs: Sequence[Callable[[], object]]) -> int | None:
        """Work through jobs; the number of the signal that stopped it, or None at its end.

        Raises:  Died if a process does; whatever a job raises, once the others have been stopped
        """
        futures = {self._pool.submit(_work, job) for job in jobs}
        waiting: set[Future[object]] = futures
        while waiting:
            done, waiting = wait(waiting, timeout=_TICK_S, return_when=FIRST_EXCEPTION)
            self._bar.show()
            if self._asked or any(future.exception() for future in done if not future.cancelled()):
                self._stop.set()
            if self._stop.is_set():
                for future in waiting:
                    future.cancel()
                # Again at every turn: one that has not begun to listen yet would miss the first. A second does no harm.
                for process in multiprocessing.active_children():
                    process.terminate()
        if self._asked:
            return self._asked[0]
        for future in futures:
            if not future.cancelled():
                _raise_failure(future)
        return None


def read_numbers(folder: Path, name: str) -> dict[str, Any]:
    """The numbers of a run."""
    found: dict[str, Any] = json.loads(_numbers_file(folder, name).read_text(encoding="utf-8"))["numbers"]
    return found


def read_reference(folder: Path, latent_dim: int) -> dict[str, Any]:
    """What real pictures have, and N(0, I) in so many dimensions."""
    return read_numbers(folder, f"reference-{latent_dim}")


def read_skill(folder: Path, dataset: Dataset) -> Skill | None:
    """How well the classifier names test pictures, or None if the data has no classes."""
    if not classifiers.has_classes(dataset):
        return None
    found = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
    return classifiers.skill(dataset, accuracy=found["accuracy"])


def run_folder(folder: Path, name: str) -> Path:
    """Where a run of a study lies."""
    return folder / "runs" / name


def _begin(plan: bytes, arrays: Path, stopping: Event) -> None:
    """In each process, once: training listens to signals, and all else is short enough to be finished."""
    global _plan, _stopping
    memory.keep_freed()
    _plan, _stopping = stored.load(plan, arrays), stopping
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process where its parent was killed, once its job has been stopped as a signal stops it."""
    _parent().join()
    while not _at_work.acquire(timeout=_TICK_S):
        os.kill(os.getpid(), signal.SIGTERM)
    os._exit(1)


def _parent() -> BaseProcess:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a process of a study asks"  # noqa: S101
    return parent


def _is_stopping() -> bool:
    """Whether no job shall begin any more."""
    return _stopping.is_set() or not _parent().is_alive()


def _work(job: Callable[[], object]) -> object:
    """A job, in one of the processes."""
    with _at_work:
        return job()


def _classify(folder: Path) -> None:
    described = {"data": _plan.dataset.sha256, "labels": _plan.dataset.labels_sha256}
    path = folder / "classifier.json"
    if _is_stopping() or not classifiers.has_classes(_plan.dataset) or _is_of(path, described):
        return
    trained = classifiers.train(_plan.dataset)
    write_whole(folder / "classifier.safetensors", safetensors.torch.save(trained.state_dict()))
    _write(path, {**described, "accuracy": classifiers.accuracy(trained, _plan.dataset)})


def _train(folder: Path, member: Member, device: str) -> None:
    place, dataset = run_folder(folder, member.name), _plan.dataset_of(member)
    if _is_stopping():
        return
    machine = join(device, processes=1)
    if is_trained(place, member):
        if not is_measured_on(place, dataset):
            measuring.measure(place, dataset=dataset, machine=machine)
        return
    if place.exists() and not (place / "config.json").exists():  # it was killed as it began
        shutil.rmtree(place)
    if place.exists():
        learner = run.resume(place, member.config, machine=machine)
    else:
        learner = run.start(place, member.config, dataset=dataset, machine=machine)
    try:
        outcome = run.train(place, learner, dataset, has_bar=False)
    except NotANumber as error:
        raise NotANumber(f"{member.name}: {error}") from error
    if outcome.signal_number is None and not _is_stopping():
        measuring.measure(place, dataset=dataset, machine=machine)


@exact_convolutions()
def _measure(folder: Path, member: Member, device: str) -> None:
    found = checkpoint.read(run_folder(folder, member.name))
    described = {
        "weights": fingerprints.of_model(found.vae),
        "data": member.config.data.sha256,
        "labels": _plan.dataset.labels_sha256,
        "edition": _EDITION,
    }
    if _is_stopping() or _is_of(_numbers_file(folder, member.name), described):
        return
    assert found.metrics is not None, "a run that has ended has been evaluated"  # noqa: S101
    machine = join(device, processes=1)
    measured = numbers.measure(
        found.vae.to(machine.device),
        metrics=found.metrics,
        dataset=_plan.dataset_of(member),
        classifier=_classifier(folder, machine),
    )
    _write(_numbers_file(folder, member.name), {**described, "numbers": measured})


@exact_convolutions()
def _reference(folder: Path, latent_dim: int, device: str) -> None:
    described = {"data": _plan.dataset.sha256, "labels": _plan.dataset.labels_sha256, "edition": _EDITION}
    path = _numbers_file(folder, f"reference-{latent_dim}")
    if _is_stopping() or _is_of(path, described):
        return
    classifier = _classifier(folder, join(device, processes=1))
    found = numbers.reference(_plan.dataset, latent_dim=latent_dim, classifier=classifier)
    _write(path, {**described, "numbers": found})


def _classifier(folder: Path, machine: Machine) -> Classifier | None:
    """The classifier of a study, or None if its data has no classes."""
    if not classifiers.has_classes(_plan.dataset):
        return None
    found = classifiers.untrained(_plan.dataset)
    found.load_state_dict(safetensors.torch.load_file(folder / "classifier.safetensors"))
    return found.eval().requires_grad_(False).to(machine.device)


def _numbers_file(folder: Path, name: str) -> Path:
    return folder / "numbers" / f"{name}.json"


def _is_of(path: Path, described: dict[str, Any]) -> bool:
    """Whether a file says that it belongs to what is at hand."""
    return path.exists() and described.items() <= json.loads(path.read_text(encoding="utf-8")).items()


def _write(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def _raise_failure(future: Future[object]) -> None:
    try:
        future.result()
    except BrokenProcessPool as error:
        raise Died(
            "a process of the study ended without a word, perhaps for want of memory; the same command goes on"
        ) from error


@contextmanager
def _arrays(folder: Path) -> Iterator[Path]:
    """A place for the pictures while processes look at them. What a kill has left there goes, but is not written over:
    processes that it left may still look.
    """
    place = folder / "arrays"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """What processes that start meanwhile read of the environment: one thread each, for torch and for numpy."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


class _Bar:
    """The progress of a whole study, read off what its runs have written so far."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._members, self._folder = plan.members, folder
        self._images = sum(member.images for member in plan.members)
        self._interval_s, self._drawn_s = bar.interval_s(), -math.inf

    def __enter__(self) -> Self:
        done, _ = self._state()
        shown = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self._bar = tqdm(total=1.0, initial=done, bar_format=shown, dynamic_ncols=True)
        return self

    def show(self) -> None:
        """Draw it as it is now, if the last time was long enough ago."""
        if time.monotonic() - self._drawn_s > self._interval_s:
            self._drawn_s = time.monotonic()
            self._look()
            self._bar.refresh()

    def __exit__(self, *_: object) -> None:
        self._look()
        self._bar.close()  # which draws it

    def _look(self) -> None:
        done, running = self._state()
        self._bar.n = done
        self._bar.set_description_str(f"{len(self._members)} runs", refresh=False)
        self._bar.set_postfix_str(", ".join(running), refresh=False)

    def _state(self) -> tuple[float, list[str]]:
        """The share of all work that is done, and what is being trained."""
        done, running = 0.0, []
        for member in self._members:
            place = run_folder(self._folder, member.name)
            history = read_history(place)
            epoch = history[-1]["epoch"] if history else 0
            epochs = member.config.training.epochs
            is_evaluated = (place / "metrics.json").exists()
            share = _TRAINED * epoch / epochs + _EVALUATED * is_evaluated
            share += _MEASURED * _numbers_file(self._folder, member.name).exists()
            done += share * member.images / self._images
            if 0 < epoch < epochs:
                running.append(f"{member.name} {epoch:.1f}/{epochs}")
        # The shares may add up to a little more than 1, at which tqdm would warn.
        return min(done, 1.0), running
