"""Whether a run that is stopped again and again ends as one that nobody stopped: by Ctrl-C and kill -9, fp32 and bf16.

Run as `python -m benchmarks.resume [--stops N]`. A small model of scikit-learn's digits is trained by `vae-train fit`,
each stop and each `--resume` being a process of its own; the stops come at any point of an epoch.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import safetensors.torch
from torch import Tensor

from benchmarks import results

SIGNALS = {"Ctrl-C": signal.SIGINT, "kill -9": signal.SIGKILL}
PRECISIONS = ("fp32", "bf16")
SETTINGS = ("--features", "8", "--latent-dim", "8", "--batch-size", "64", "--save-every", "0")
FILES = ("model.safetensors", "state/training.safetensors")
# An epoch of the digits is 26 steps, and a stop comes at least one epoch after the one before, and at most this later.
_EPOCHS_PER_STOP = 6
_LATEST_S = 0.25


def main() -> None:
    """Stop and resume, print a table, keep what was found as JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--stops", type=int, default=10, help="of each run")
    stops = parser.parse_args().stops
    measured = []
    with TemporaryDirectory() as folder:
        for precision in PRECISIONS:
            settings = (*SETTINGS, "--epochs", str(_EPOCHS_PER_STOP * (stops + 1)), "--precision", precision)
            whole = Path(folder) / precision
            finish(whole, settings)
            for name, number in SIGNALS.items():
                stopped = Path(folder) / f"{precision}-{number.name}"
                steps = [stop(stopped, settings, number, after_s=after_s) for after_s in times(stops)]
                finish(stopped, (*settings, "--resume"))
                measured.append({"precision": precision, "stopped_by": name, **compared(stopped, whole, steps)})
    print(f"{results.on_machine()}\n")
    print(
        results.table(
            ("precision", "stopped by", "stops, saved at step", "of", "bit-equal tensors", "log"), rows(measured)
        )
    )
    print("\n" + results.keep("resume", {"stops": stops, "runs": measured}))


def times(stops: int) -> Iterator[float]:
    """When each stop comes, seconds after the first epoch's end; the same in every run of this command."""
    drawn = random.Random(0)  # noqa: S311  # no secret
    return (drawn.uniform(0, _LATEST_S) for _ in range(stops))


def command(folder: Path, settings: tuple[str, ...]) -> "subprocess.Popen[str]":
    """`vae-train fit` in a process of its own."""
    line = (sys.executable, "-m", "model", "fit", "--out", str(folder), *settings)
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(folder: Path, settings: tuple[str, ...]) -> None:
    """The run to its end."""
    process = command(folder, settings)
    _, said = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(said)


def stop(folder: Path, settings: tuple[str, ...], number: signal.Signals, *, after_s: float) -> int:
    """The step of the save that a stop left, of a run that is started or resumed for it."""
    before = (folder / FILES[1]).stat().st_mtime_ns if folder.exists() else 0
    process = command(folder, (*settings, "--resume") if folder.exists() else settings)
    while not (folder / FILES[1]).exists() or (folder / FILES[1]).stat().st_mtime_ns == before:
        if process.poll() is not None:
            raise RuntimeError(process.communicate()[1])
        time.sleep(0.005)
    time.sleep(after_s)
    os.kill(process.pid, number)
    _, said = process.communicate()
    if process.returncode not in (-signal.SIGKILL, 128 + signal.SIGINT):
        raise RuntimeError(f"got exit code {process.returncode}, expected a run that was stopped: {said}")
    return int(tensors(folder)["state/training.safetensors:step"])


def compared(stopped: Path, whole: Path, steps: list[int]) -> dict[str, Any]:
    """What of a stopped run is as in the other, bit for bit."""
    got, expected = tensors(stopped), tensors(whole)
    equal = [name for name in expected if name in got and same_bits(got[name], expected[name])]
    return {
        "saved_at": steps,
        "steps": int(expected["state/training.safetensors:step"]),
        "tensors": len(got.keys() | expected.keys()),
        "equal": len(equal),
        "same_log": logged(stopped) == logged(whole),
    }


def tensors(folder: Path) -> dict[str, Tensor]:
    """All weights and all of the state, by file and name."""
    return {
        f"{file}:{name}": tensor
        for file in FILES
        for name, tensor in safetensors.torch.load_file(folder / file).items()
    }


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Not only the same numbers: a zero has two signs."""
    return one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()


def logged(folder: Path) -> list[tuple[int, float]]:
    """Step and learning rate of each line: what a resumed run has in common with the other, its means aside."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["learning_rate"]) for line in lines]


def rows(measured: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The table's rows."""
    return [
        (
            found["precision"],
            found["stopped_by"],
            ", ".join(map(str, found["saved_at"])),
            str(found["steps"]),
            f"{found['equal']} of {found['tensors']}",
            "same steps" if found["same_log"] else "other steps",
        )
        for found in measured
    ]


if __name__ == "__main__":
    main()
