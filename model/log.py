"""What a run has to say as it goes: `metrics.jsonl` for programs, TensorBoard's files for people."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter

from model.files import write_whole
from model.training import Learner, StepReport

_FILE = "metrics.jsonl"
_FOLDER = "tensorboard"
_STEPS_PER_LINE = 100


class Log:
    """Means over the steps since the last line, a line every 100 steps and at the end of each epoch.

    A resumed run goes on after the line of its last save: what was logged beyond it is dropped, for it will come again.
    """

    def __init__(self, folder: Path, learner: Learner) -> None:
        self._learner = learner
        self._path = folder / _FILE
        kept = [line for line in read_history(folder) if line["step"] <= learner.step]
        self._spent_s = kept[-1]["seconds"] if kept else 0.0
        write_whole(self._path, "".join(f"{json.dumps(line)}\n" for line in kept).encode())
        self._board = SummaryWriter(folder / _FOLDER, purge_step=learner.step + 1)
        self._reports: list[StepReport] = []
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._board.close()

    def add(self, report: StepReport) -> None:
        """Remember a step."""
        self._reports.append(report)

    def write(self, *, validate: Callable[[], dict[str, float]] | None = None) -> None:
        """A line of what was remembered, and of what validation finds at this step where it is to run.

        Its time counts among the seconds of the run, and not as that of the pictures trained on.
        """
        reports, self._reports = self._reports, []
        images = sum(report.n for report in reports)
        trained_s = time.monotonic() - self._began
        validation = validate() if validate else None
        now = time.monotonic()
        self._spent_s += now - self._began
        self._began = now
        last = reports[-1]

        def mean(name: str) -> float:
            total: float = sum(getattr(report, name) * report.n for report in reports)
            return total / images

        line: dict[str, Any] = {
            "step": last.step,
            "epoch": last.step / self._learner.steps_per_epoch,
            "seconds": round(self._spent_s, 3),
            "images_per_s": round(images / trained_s, 1),
            **{name: mean(name) for name in ("elbo", "recon", "kl")},
            "bound": mean("bound") if all(report.bound is not None for report in reports) else None,
            "beta": last.beta,
            "learning_rate": last.learning_rate,
            "gradient_norm": mean("gradient_norm"),
            "validation": validation,
        }
        if self._learner.vae.config.family == "autoencoder":
            line = _of_reconstruction(line)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        validated = {f"validation/{name}": value for name, value in (line["validation"] or {}).items()}
        for name, value in (line | validated).items():
            if isinstance(value, int | float) and name != "step":
                self._board.add_scalar(name if "/" in name else f"train/{name}", value, last.step)
        self._board.flush()


def is_due(learner: Learner) -> bool:
    """Whether the steps so far make a line."""
    # Counted from the epoch's start, not from the last line, so that a resumed run has its lines at the same steps.
    return learner.step % learner.steps_per_epoch % _STEPS_PER_LINE == 0


def _of_reconstruction(line: dict[str, Any]) -> dict[str, Any]:
    """What an autoencoder has of a line: a reconstruction term, and no KL that would make a bound of it."""
    validation = line["validation"] and {"recon": line["validation"]["recon"]}
    return line | {"elbo": None, "kl": None, "beta": None, "validation": validation}


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, in the order of its steps; none if it has no log.

    A line that a kill cut short is none, and one that a machine lost as it stopped ends the log.
    """
    path = folder / _FILE
    lines = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
