"""What a run says as it goes: lines that programs read, and files that TensorBoard reads."""

import dataclasses
import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from model import log as module
from model.log import Log, is_due, read_history
from model.training import Learner, StepReport, TrainConfig
from model.vae import ModelConfig

TINY = ModelConfig(9, 6, 1, latent_dim=3, features=4)
# Epochs of 250 steps: lines at 100, 200 and 250 of each.
LONG = TrainConfig(epochs=2, batch_size=2)
VALIDATION = {"elbo": -30.0, "recon": 25.0, "kl": 5.0}
FIELDS = [
    "step",
    "epoch",
    "seconds",
    "images_per_s",
    "elbo",
    "recon",
    "kl",
    "bound",
    "beta",
    "learning_rate",
    "gradient_norm",
    "validation",
]


@pytest.fixture
def learner() -> Learner:
    return Learner(TINY, training=LONG, n_images=499)


def report(step: int, *, n: int = 2, elbo: float = -3.0, bound: float | None = None) -> StepReport:
    return StepReport(
        step=step,
        n=n,
        elbo=elbo,
        recon=-elbo - 1,
        kl=1.0,
        bound=bound,
        beta=step / 1000,
        learning_rate=1e-3,
        gradient_norm=float(step),
    )


def work(log: Log, learner: Learner, *, until: int, bound: float | None = None) -> None:
    """Steps of no one, logged as a run logs its own."""
    while learner.step < until:
        learner.step += 1
        log.add(report(learner.step, n=2 if learner.step % 250 else 1, elbo=-float(learner.step), bound=bound))
        if is_due(learner):
            log.write(validate=(lambda: VALIDATION) if learner.step % 250 == 0 else None)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard shows under a tag: steps and values."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_a_line_comes_every_100_steps_and_at_the_end_of_an_epoch(tmp_path: Path, learner: Learner) -> None:
    with Log(tmp_path, learner) as log:
        work(log, learner, until=500)
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [100, 200, 250, 350, 450, 500]
    assert [line["epoch"] for line in found] == [0.4, 0.8, 1.0, 1.4, 1.8, 2.0]
    assert [line["validation"] for line in found] == [None, None, VALIDATION] * 2
    assert all(list(line) == FIELDS for line in found)


def test_a_line_is_the_mean_over_the_pictures_since_the_last_one(tmp_path: Path, learner: Learner) -> None:
    """The last batch of an epoch is one picture, so it weighs half."""
    with Log(tmp_path, learner) as log:
        work(log, learner, until=250)
    last = lines(tmp_path)[-1]
    steps = np.arange(201, 251)
    weights = np.where(steps == 250, 1, 2)
    assert last["elbo"] == pytest.approx(-np.average(steps, weights=weights))
    assert last["recon"] == pytest.approx(np.average(steps, weights=weights) - 1)
    assert last["gradient_norm"] == pytest.approx(np.average(steps, weights=weights))
    assert last["kl"] == pytest.approx(1)
    assert last["bound"] is None
    assert (last["beta"], last["learning_rate"]) == (0.25, 1e-3)


def test_the_bound_is_said_where_all_steps_of_a_line_had_one(tmp_path: Path, learner: Learner) -> None:
    with Log(tmp_path, learner) as log:
        work(log, learner, until=150)
        work(log, learner, until=300, bound=-7.0)
        work(log, learner, until=350)
    assert [line["bound"] for line in lines(tmp_path)] == [None, None, pytest.approx(-7.0), None]


def test_an_autoencoder_has_no_elbo_kl_or_beta_to_say(tmp_path: Path) -> None:
    point = Learner(dataclasses.replace(TINY, family="autoencoder"), training=LONG, n_images=499)
    with Log(tmp_path, point) as log:
        work(log, point, until=250)
    last = lines(tmp_path)[-1]
    assert list(last) == FIELDS
    assert last["elbo"] is last["kl"] is last["beta"] is None
    assert last["recon"] > 0
    assert last["validation"] == {"recon": VALIDATION["recon"]}


def test_images_per_second_and_seconds_agree(tmp_path: Path, learner: Learner) -> None:
    with Log(tmp_path, learner) as log:
        work(log, learner, until=500)
    before_s = 0.0
    for line, n in zip(lines(tmp_path), [200, 200, 99] * 2, strict=True):
        spent_s = line["seconds"] - before_s
        before_s = line["seconds"]
        assert spent_s >= 0
        rounded_s = 2e-3 + spent_s * 0.05 / line["images_per_s"]
        assert n / line["images_per_s"] == pytest.approx(spent_s, abs=rounded_s)


def test_the_time_of_validation_is_the_runs_and_not_that_of_pictures_trained_on(
    tmp_path: Path, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def validate() -> dict[str, float]:
        now[0] += 100
        return VALIDATION

    with Log(tmp_path, learner) as log:
        for step in (1, 2):
            now[0] += 4
            log.add(report(step))
            log.write(validate=validate)
    found = lines(tmp_path)
    assert [line["images_per_s"] for line in found] == [0.5, 0.5]
    assert [line["seconds"] for line in found] == [104, 208]


@pytest.mark.parametrize("stop_at", [0, 37, 100, 163, 250, 251, 499])
def test_a_resumed_run_has_its_lines_at_the_steps_of_an_uninterrupted_one(tmp_path: Path, stop_at: int) -> None:
    for until in (stop_at, 500):
        learner = Learner(TINY, training=LONG, n_images=499)
        learner.step = stop_at if until == 500 else 0
        with Log(tmp_path, learner) as log:
            work(log, learner, until=until)
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [100, 200, 250, 350, 450, 500]
    assert [line["seconds"] for line in found] == sorted(line["seconds"] for line in found)


def test_lines_beyond_the_save_are_dropped_and_come_again(tmp_path: Path, learner: Learner) -> None:
    with Log(tmp_path, learner) as log:
        work(log, learner, until=450)
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()
    learner.step = 250
    with Log(tmp_path, learner) as log:
        assert (tmp_path / "metrics.jsonl").read_text().splitlines() == before[:3]
        work(log, learner, until=500)
    assert [line["step"] for line in lines(tmp_path)] == [100, 200, 250, 350, 450, 500]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path, learner: Learner) -> None:
    with Log(tmp_path, learner) as log:
        work(log, learner, until=250)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3')
    with Log(tmp_path, learner) as log:
        work(log, learner, until=350)
    assert [line["step"] for line in lines(tmp_path)] == [100, 200, 250, 350]


def test_tensorboard_reads_what_was_logged(tmp_path: Path, learner: Learner) -> None:
    with Log(tmp_path, learner) as log:
        work(log, learner, until=500)
    found = lines(tmp_path)
    for name in ("elbo", "recon", "kl", "beta", "learning_rate", "gradient_norm", "images_per_s"):
        shown = scalars(tmp_path, f"train/{name}")
        assert [step for step, _ in shown] == [line["step"] for line in found]
        assert [value for _, value in shown] == pytest.approx([line[name] for line in found], rel=1e-6)
    for name, value in VALIDATION.items():
        assert scalars(tmp_path, f"validation/{name}") == [(250, value), (500, value)]


def test_tensorboard_has_no_step_twice_and_none_missing_after_a_kill(
    tmp_path: Path, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process closes nothing: what it had logged must be on disk already."""
    # Files of one second are told apart, and read in the order of, a number as text: here not 9 and 10, or 99 and 100.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    killed = Log(tmp_path, learner)
    work(killed, learner, until=450)
    learner.step = 250
    with Log(tmp_path, learner) as log:
        work(log, learner, until=500)
    assert [step for step, _ in scalars(tmp_path, "train/elbo")] == [100, 200, 250, 350, 450, 500]
    assert [step for step, _ in scalars(tmp_path, "validation/elbo")] == [250, 500]
    killed.__exit__()


def test_the_steps_of_a_real_run_are_what_a_line_says(tmp_path: Path, images: np.ndarray) -> None:
    run = Learner(TINY, training=TrainConfig(epochs=2, batch_size=8, iw_samples=2, iw_epochs=1.0), n_images=30)
    with Log(tmp_path, run) as log:
        for epoch in range(2):
            reports = []
            for step in islice(run.run(images), 4):
                reports.append(step)
                log.add(step)
            assert is_due(run)
            log.write()
            line = lines(tmp_path)[epoch]
            assert line["elbo"] == pytest.approx(sum(r.n * r.elbo for r in reports) / 30)
            assert line["elbo"] == pytest.approx(-(line["recon"] + line["kl"]))
            assert (line["bound"] is None) == (epoch == 0)
            assert math.isfinite(line["images_per_s"])


def test_a_line_that_a_machine_lost_ends_the_log(tmp_path: Path, learner: Learner) -> None:
    whole = json.dumps({"step": 100, "seconds": 3.0})
    (tmp_path / "metrics.jsonl").write_bytes(f"{whole}\n".encode() + bytes(20) + f"\n{whole}\n".encode())
    assert read_history(tmp_path) == [{"step": 100, "seconds": 3.0}]
    learner.step = 250
    Log(tmp_path, learner)
    assert (tmp_path / "metrics.jsonl").read_text() == f"{whole}\n"
