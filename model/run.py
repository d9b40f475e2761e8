"""One training run in its folder: started or resumed, saved as it goes, measured and drawn at its end."""

import dataclasses
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self

from tqdm import tqdm

from model import checkpoint, pictures
from model.checkpoint import RunConfig
from model.data import Dataset
from model.errors import BadData, BadSetting
from model.evaluation import evaluate
from model.training import Learner


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Where a run ended: at its last step, or where a signal stopped it."""

    step: int
    steps: int
    signal_number: int | None


def start(folder: Path, config: RunConfig, *, dataset: Dataset) -> Learner:
    """A learner at step 0, in a folder that is made for it.

    Raises:  BadSetting if the folder holds something already
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadSetting(f"{folder}: got a place with something in it, expected a new folder, or --resume to go on")
    checkpoint.write_config(folder, config, probe=dataset.test[: checkpoint.PROBE_ROWS])
    return Learner(config.model, training=config.training, n_images=len(dataset.train))


def resume(folder: Path, config: RunConfig) -> Learner:
    """A learner at the step of the last save.

    Raises:  BadCheckpoint if the folder holds no run; BadSetting if its run was started with other settings
    """
    stored = checkpoint.read_config(folder)
    for part in ("model", "training", "data"):
        was, now = (dataclasses.asdict(getattr(c, part)) for c in (stored, config))
        for name in was:
            if was[name] != now[name]:
                raise BadSetting(f"{name}: got {now[name]}, expected {was[name]}, with which {folder} was started")
    learner = Learner(config.model, training=config.training, n_images=config.data.n_train)
    checkpoint.load_state(folder, learner)
    return learner


def train(folder: Path, learner: Learner, dataset: Dataset) -> Outcome:
    """Steps to the end of the run, saving after each epoch; SIGINT and SIGTERM save and stop.

    Raises:  NotANumber when a term or the gradient stops being finite
    """
    stopping = False
    with _asked_to_stop() as asked, _Bar(learner) as bar:
        for report in learner.run(dataset.train):
            bar.show(n=report.n, recon=report.recon, kl=report.kl)
            stopping = bool(asked)  # read once: a signal between two looks would stop without a save
            if stopping or learner.step % learner.steps_per_epoch == 0:
                checkpoint.save(folder, learner)
            if stopping:
                break
    return Outcome(step=learner.step, steps=learner.steps, signal_number=asked[0] if stopping else None)


def measure(folder: Path, *, dataset: Dataset, draws: int = 1, seed: int = 0) -> dict[str, Any]:
    """The metrics of the checkpoint in a folder, written into it together with pictures, from test pictures.

    Raises:  BadCheckpoint if there is none; BadData if the pictures have another shape
    """
    found = checkpoint.read(folder)
    if dataset.image_shape != found.config.image_shape:
        got, expected = dataset.image_shape, found.config.image_shape
        raise BadData(f"{dataset.name}: got pictures of shape {got}, expected {expected} as {folder} was trained on")
    metrics = evaluate(found.vae, dataset.test, data=dataset.name, draws=draws, seed=seed)
    checkpoint.write_metrics(folder, metrics)
    pictures.write_all(folder / "pictures", found.vae, dataset.test)
    return metrics


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
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
    """The progress of a run: images/s, and elbo, recon and kl averaged over about the last hundred steps."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
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
            self._bar.set_postfix_str(f"elbo {-(recon + kl):.2f}, recon {recon:.2f}, kl {kl:.2f}", refresh=False)
        self._bar.update(n)

    def __exit__(self, *_: object) -> None:
        self._bar.close()
