"""The command as a person runs it: real processes, real signals, sentences and exit codes."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import typer
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from model import checkpoint, data, lock, measuring, nll, run
from model.__main__ import app
from model.checkpoint import DataConfig, RunConfig
from model.machine import Machine
from model.training import Learner, TrainConfig
from model.vae import ModelConfig
from tests.waiting import until

TINY = ("--features", "4", "--latent-dim", "3", "--epochs", "2", "--batch-size", "64")
DOCS = Path(__file__).parents[2] / "docs" / "training.md"
COMMAND = (sys.executable, "-m", "model")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
STATE = "state/training.safetensors"
OF_A_DENSITY = {
    "scale_head": ("--scale-head", "sigma"),
    "beta": ("--beta", "4.0"),
    "beta_schedule": ("--beta-schedule", "cosine"),
    "kl_warmup_epochs": ("--kl-warmup-epochs", "1.0"),
    "free_bits": ("--free-bits", "0.5"),
}
COMMANDS: Any = typer.main.get_command(app)


def vae_train(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own."""
    command = (*COMMAND, *map(str, arguments))
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)


def called(*arguments: object) -> Result:
    """The command in this process, which saves a start of torch."""
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the digits, finished."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    done = vae_train("fit", "--out", folder, *TINY)
    assert done.returncode == 0, done.stderr
    assert "test images of digits" in done.stdout
    for shown in ("epoch 2/2", "elbo", "recon", "kl", "images/s"):
        assert shown in done.stderr
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures, 8×8: eighteen to train on, two to test with."""
    path = tmp_path_factory.mktemp("data") / "few.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8))
    return path


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after training is left out: it takes seconds, and has tests of its own."""
    monkeypatch.setattr(measuring, "measure", lambda *_args, **_options: {})
    monkeypatch.setattr("model.__main__._report", lambda *_args, **_options: None)


def test_fit_leaves_a_whole_checkpoint(finished: Path) -> None:
    names = {str(file.relative_to(finished)) for file in finished.rglob("*") if file.is_file()}
    assert names >= {
        "card.md",
        "config.json",
        "metrics.json",
        "metrics.jsonl",
        "model.safetensors",
        "probe.safetensors",
        "state/machine.json",
        "state/training.safetensors",
        "pictures/interpolations.png",
        "pictures/reconstructions.png",
        "pictures/samples.png",
    }
    assert not any(name.endswith(".tmp") for name in names)
    assert len(list((finished / "tensorboard").iterdir())) == 1


def test_evaluate_measures_a_run_anew(finished: Path) -> None:
    before = json.loads((finished / "metrics.json").read_text())
    again = called("evaluate", finished)
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout) == before
    more = called("evaluate", finished, "--draws", 3, "--seed", 1)
    assert json.loads(more.stdout)["protocol"]["draws"] == 3


# What each flag of fit sets: its words, then the part of config.json, its field and the value there.
FLAGS: dict[str, tuple[tuple[str, ...], str, str, object]] = {
    "--family": (("autoencoder",), "model", "family", "autoencoder"),
    "--preset": (("mlp",), "model", "preset", "mlp"),
    "--features": (("5",), "model", "features", 5),
    "--depth": (("2", "--preset", "residual"), "model", "depth", 2),
    "--latent-dim": (("5",), "model", "latent_dim", 5),
    "--likelihood": (("bernoulli",), "model", "likelihood", "bernoulli"),
    "--sigma": (("optimal",), "model", "sigma", "optimal"),
    "--dequantised": ((), "model", "dequantised", True),
    "--scale-head": (("variance",), "model", "scale_head", "variance"),
    "--validation": (("3",), "data", "n_validation", 3),
    "--validation-seed": (("2",), "data", "validation_seed", 2),
    "--epochs": (("2",), "training", "epochs", 2),
    "--batch-size": (("7",), "training", "batch_size", 7),
    "--accumulate": (("2",), "training", "accumulate", 2),
    "--learning-rate": (("0.1",), "training", "learning_rate", 0.1),
    "--lr-warmup-steps": (("3",), "training", "lr_warmup_steps", 3),
    "--weight-decay": (("0.1",), "training", "weight_decay", 0.1),
    "--beta": (("0.5",), "training", "beta", 0.5),
    "--beta-schedule": (("cyclic",), "training", "beta_schedule", "cyclic"),
    "--kl-warmup-epochs": (("0.5",), "training", "kl_warmup_epochs", 0.5),
    "--free-bits": (("0.1",), "training", "free_bits", 0.1),
    "--iw-samples": (("3", "--iw-epochs", "1"), "training", "iw_samples", 3),
    "--iw-epochs": (("0.5", "--iw-samples", "2"), "training", "iw_epochs", 0.5),
    "--grad-clip": (("3",), "training", "grad_clip", 3.0),
    "--average-decay": (("0.5",), "training", "average_decay", 0.5),
    "--precision": (("bf16",), "training", "precision", "bf16"),
    "--compile": ((), "training", "compile", True),
    "--processes": (("2",), "training", "processes", 2),
    "--seed": (("4",), "training", "seed", 4),
}
# These say where, and how pictures come in; they have tests of their own.
ELSEWHERE = {"--out", "--data", "--resume", "--start-from", "--size", "--channels", "--device", "--save-every"}


def test_no_flag_of_fit_is_forgotten_here() -> None:
    assert {option.opts[0] for option in COMMANDS.commands["fit"].params} == FLAGS.keys() | ELSEWHERE


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_of_fit_reaches_its_field_and_trains(
    flag: str, few: Path, tmp_path: Path, unmeasured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch is trained; minutes of torch.compile and the start of processes are left out."""
    monkeypatch.setattr(
        "model.__main__.join", lambda _device, *, processes: Machine(torch.device("cpu"), processes=processes)
    )
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _module: None)
    words, part, field, expected = FLAGS[flag]
    small = {"--features": "4", "--latent-dim": "3", "--epochs": "1", "--batch-size": "8"}
    others = [word for name, value in small.items() if name != flag for word in (name, value)]
    done = called("fit", "--data", few, "--out", tmp_path / "run", *others, flag, *words)
    assert done.exit_code == 0, done.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())[part][field] == expected
    default = {**vars(ModelConfig), **vars(TrainConfig), "n_validation": 0, "validation_seed": 0}[field]
    assert expected != default


@pytest.mark.parametrize(
    ("flags", "sigma"),
    [((), 0.3), (("--sigma", "0.5"), 0.5), (("--sigma", "learned"), "learned"), (("--likelihood", "logistic"), None)],
)
def test_a_sigma_may_be_a_number_and_another_likelihood_has_none(
    few: Path, tmp_path: Path, unmeasured: None, flags: tuple[str, ...], sigma: object
) -> None:
    done = called("fit", "--data", few, "--out", tmp_path / "run", *TINY, *flags)
    assert done.exit_code == 0, done.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["sigma"] == sigma


# Forks into one command after another: a process of its own for each. What takes seconds is done before and but once:
# to import, as the first step of training does too, and to take down an interpreter that holds torch.
STARTER = """
import json, os, sys
from model import data
from model.__main__ import app
from model.training import Learner, TrainConfig
from model.vae import ModelConfig

digits = data.read(None).train
next(Learner(ModelConfig(8, 8, 1), training=TrainConfig(), n_images=len(digits)).run(digits))
for line in sys.stdin:
    arguments, said = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), sys.stderr.fileno())
        try:
            app(arguments)
        except SystemExit as end:
            os._exit(end.code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
os._exit(0)
"""
Starter = subprocess.Popen[str]


@pytest.fixture(scope="module")
def starter() -> Iterator[Starter]:
    command = (sys.executable, "-c", STARTER)
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin
        process.stdin.close()


def stopped(starter: Starter, folder: Path, *arguments: str, send: signal.Signals, after_s: float) -> str:
    """A run that was sent a signal, so long after it had logged a line beyond its last save; returns what it said."""
    said = folder.with_name(f"{folder.name}.said")
    step = saved_step(folder)
    assert starter.stdin
    assert starter.stdout
    starter.stdin.write(json.dumps([("fit", "--out", str(folder), *arguments), str(said)]) + "\n")
    starter.stdin.flush()
    process = int(starter.stdout.readline())
    # A resumed run drops the lines beyond its save, so that it is not taken for the one before.
    until(lambda: not said.exists() or "images/s" in said.read_text())
    until(lambda: max(logged_steps(folder), default=0) > step)
    time.sleep(after_s)
    os.kill(process, send)
    assert int(starter.stdout.readline()) == (-send if send == signal.SIGKILL else 128 + send), said.read_text()
    return said.read_text()


def saved_step(folder: Path) -> int:
    return checkpoint.saved_step(folder) or 0


def logged_steps(folder: Path) -> list[int]:
    log = folder / "metrics.jsonl"
    return [json.loads(line)["step"] for line in log.read_text().split("\n")[:-1]] if log.exists() else []


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve epochs of 26 steps that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole") / request.param
    digits = data.read(None)
    config = RunConfig(
        model=ModelConfig(8, 8, 1, features=4, latent_dim=3),
        training=TrainConfig(epochs=12, batch_size=64, precision=request.param),
        data=DataConfig.of(digits, validation_seed=0),
    )
    assert run.train(folder, run.start(folder, config, dataset=digits), digits).step == 312
    return folder


@pytest.mark.parametrize("send", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_run_that_is_stopped_again_and_again_equals_an_uninterrupted_one(
    starter: Starter, whole: Path, tmp_path: Path, send: signal.Signals
) -> None:
    """Three stops in a row, at any point of an epoch; `python -m benchmarks.resume` makes ten of each."""
    folder = tmp_path / "run"
    settings = (*TINY, "--epochs", "12", "--save-every", "0", "--precision", whole.name)
    times = random.Random(0)  # noqa: S311  # no secret
    steps = [0]
    for stop in range(3):
        resume = ("--resume",) if stop else ()
        said = stopped(starter, folder, *settings, *resume, send=send, after_s=times.uniform(0, 0.1))
        steps.append(saved_step(folder))
        if send == signal.SIGINT:
            assert f"Stopped and saved at step {steps[-1]} of 312." in said
            assert "The same command with --resume goes on from there." in said
    assert steps == sorted(steps)
    assert 0 < steps[-1] < 312

    # The rest in this process: the command would also draw pictures.
    assert run.train(folder, run.resume(folder, checkpoint.read_config(whole)), data.read(None)).step == 312
    for name in ("model.safetensors", STATE):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert logged_steps(folder) == logged_steps(whole) == list(range(26, 313, 26))
    assert not list(folder.rglob("*.tmp"))


def test_a_run_starts_from_another_whose_model_it_takes(
    finished: Path, few: Path, tmp_path: Path, unmeasured: None
) -> None:
    more = ("fit", "--out", tmp_path / "more", "--start-from", finished, "--epochs", 1, "--learning-rate", 1e-4)
    assert called(*more).exit_code == 0
    config = json.loads((tmp_path / "more" / "config.json").read_text())
    assert config["model"] == json.loads((finished / "config.json").read_text())["model"]
    assert config["origin"]["name"] == finished.name
    assert (config["training"]["batch_size"], config["training"]["learning_rate"]) == (128, 1e-4)
    assert called(*more, "--resume").exit_code == 0
    assert called("fit", "--out", tmp_path / "more", "--resume").exit_code == 0

    refused = called("fit", "--out", tmp_path / "wider", "--start-from", finished, "--features", 5)
    assert (refused.exit_code, refused.stderr) == (
        2,
        "vae-train: features: got 5, expected 4, as the run has that it is to start from\n",
    )
    refused = called("fit", "--out", tmp_path / "none", "--start-from", tmp_path / "nowhere")
    assert refused.exit_code == 2
    assert "nowhere/config.json: got No such file or directory" in refused.stderr
    assert not (tmp_path / "wider").exists()
    assert not (tmp_path / "none").exists()


def test_pictures_are_brought_to_the_size_of_the_run_that_is_started_from(
    few: Path, tmp_path: Path, unmeasured: None
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(12):
        Image.new("RGB", (20 + index, 30), (index, 9, 9)).save(photos / f"{index}.png")
    assert called("fit", "--data", few, "--out", tmp_path / "first", *TINY).exit_code == 0
    done = called("fit", "--data", photos, "--out", tmp_path / "second", "--start-from", tmp_path / "first")
    assert done.exit_code == 0, done.stderr
    assert checkpoint.read_config(tmp_path / "second").model.image_shape == (8, 8, 1)


def test_a_polite_kill_saves_too(starter: Starter, tmp_path: Path) -> None:
    settings = ("--features", "4", "--epochs", "100", "--batch-size", "32")
    said = stopped(starter, tmp_path / "run", *settings, send=signal.SIGTERM, after_s=0)
    assert "Stopped and saved at step" in said


def test_a_folder_of_photos_becomes_a_model_of_the_size_asked_for(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(12):
        pixels = np.random.default_rng(index).integers(0, 256, (20 + index, 30, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{index}.jpg")
    refused = called("fit", "--data", photos, "--out", tmp_path / "run", *TINY)
    assert refused.exit_code == 2
    assert "or --size HxW to fit them to" in refused.stderr
    assert not (tmp_path / "run").exists()
    done = called(
        "fit", "--data", photos, "--out", tmp_path / "run", *TINY, "--size", "16x24", "--likelihood", "bernoulli"
    )
    assert done.exit_code == 0, done.stderr
    model = json.loads((tmp_path / "run" / "config.json").read_text())["model"]
    assert (model["height"], model["width"], model["channels"]) == (16, 24, 3)
    assert (model["likelihood"], model["sigma"]) == ("bernoulli", None)
    # The size is the run's: neither resuming nor evaluating asks for it again.
    assert called("fit", "--data", photos, "--out", tmp_path / "run", "--resume").exit_code == 0
    assert called("evaluate", tmp_path / "run", "--data", photos).exit_code == 0
    grey = called("fit", "--data", photos, "--out", tmp_path / "grey", *TINY, "--size", "16x24", "--channels", 1)
    assert grey.exit_code == 0, grey.stderr
    assert checkpoint.read_config(tmp_path / "grey").model.channels == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("fit", "--out", "{run}"), "expected a new folder, or --resume to go on"),
        (("fit", "--out", "{run}", "--resume", "--epochs", "3"), "epochs: got 3, expected 2, with which"),
        (("fit", "--out", "{run}", "--resume", "--sigma", "0.5"), "sigma: got 0.5, expected 0.3, with which"),
        (("fit", "--out", "{run}", "--resume", "--precision", "bf16"), "precision: got bf16, expected fp32, with"),
        (("fit", "--out", "{run}", "--resume", "--validation", "5"), "validation: got 5, expected 0, with which"),
        (("fit", "--out", "{new}", "--resume"), "config.json: got No such file or directory"),
        (("fit", "--out", "{new}", "--data", "{new}"), "got nothing there, expected a folder"),
        (("fit", "--out", "{new}", "--size", "28"), "--size: got '28', expected HxW in pixels"),
        (("fit", "--out", "{new}", "--size", "0x8"), "--size: got '0x8', expected HxW in pixels"),
        (("fit", "--out", "{new}", "--size", "28x28"), "got pictures of shape (8, 8, 1), expected (28, 28, 1)"),
        (("fit", "--out", "{new}", "--sigma", "-1"), "sigma: got -1.0, expected a number from 1/512"),
        (("fit", "--out", "{new}", "--sigma", "wide"), "sigma: got 'wide', expected a number from 1/512"),
        (("fit", "--out", "{new}", "--likelihood", "logistic", "--sigma", "0.3"), "sigma: got 0.3, expected none"),
        (("fit", "--out", "{new}", "--learning-rate", "nan"), "learning_rate: got nan"),
        (("fit", "--out", "{new}", "--device", "tpu"), "device: got 'tpu', expected one of auto, cpu, cuda"),
        (("fit", "--out", "{new}", "--processes", "2"), "processes: got 1 of them started, expected 2"),
        (("fit", "--out", "{new}", "--validation", "5000"), "digits: got 5000 pictures to validate on"),
        (
            ("fit", "--out", "{new}", "--family", "autoencoder", "--iw-samples", "2", "--iw-epochs", "1"),
            "iw_epochs: got some with an autoencoder",
        ),
        (("evaluate", "{new}"), "config.json: got No such file or directory"),
        (("evaluate", "{of_others}"), "--data: got none, expected where few is, from which"),
        (("fit", "--out", "{of_others}", "--resume"), "--data: got none, expected where few is, from which"),
        (("evaluate", "{run}", "--precision", "fp64"), "--precision: got 'fp64' without --nll, expected both"),
        (("evaluate", "{run}", "--nll-samples", "5"), "--nll-samples: got '5' without --nll, expected both"),
        (("evaluate", "{run}", "--nll-images", "5"), "--nll-images: got 5 without --nll, expected both"),
        (("evaluate", "{run}", "--nll-draws", "1"), "--nll-draws: got 1 without --nll, expected both"),
    ],
)
def test_what_a_person_got_wrong_is_one_sentence_and_exit_code_2(
    finished: Path, few: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    places = {"{run}": str(finished), "{new}": str(tmp_path / "new"), "{of_others}": str(tmp_path / "of_others")}
    if "{of_others}" in arguments:
        config = checkpoint.read_config(finished)
        of_others = dataclasses.replace(config, data=dataclasses.replace(config.data, name="few"))
        checkpoint.write_config(tmp_path / "of_others", of_others, probe=data.read(few).test)
    done = called(*(places.get(argument, argument) for argument in arguments))
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("vae-train: ")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("command", "flag", "value"),
    [
        ("fit", "--features", "0"),
        ("fit", "--depth", "0"),
        ("fit", "--validation", "-1"),
        ("study", "--features", "0"),
        ("study", "--depth", "0"),
    ],
)
def test_a_count_below_its_least_is_refused_by_its_flag(tmp_path: Path, command: str, flag: str, value: str) -> None:
    done = called(command, "--out", tmp_path / "new", flag, value)
    assert done.exit_code == 2
    assert f"'{flag}'" in done.stderr
    assert not (tmp_path / "new").exists()


def test_the_bar_of_an_autoencoder_shows_no_bound(few: Path, tmp_path: Path, unmeasured: None) -> None:
    done = called("fit", "--data", few, "--out", tmp_path / "run", *TINY, "--family", "autoencoder")
    assert done.exit_code == 0, done.stderr
    assert re.search(r"images/s, recon \d+\.\d\d\]", done.stderr)
    assert "elbo" not in done.stderr


def test_an_autoencoder_that_is_validated_comes_to_its_card(few: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = called("fit", "--data", few, "--out", folder, *TINY, "--family", "autoencoder", "--validation", "5")
    assert done.exit_code == 0, done.stderr
    *_, last = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert last["elbo"] is None
    assert list(last["validation"]) == ["recon"]
    assert (folder / "pictures" / "curves.png").is_file()
    assert "Overfitting" not in (folder / "card.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--likelihood", "normal"), "likelihood: got 'normal', expected one of"),
        (("--depth", "3"), "depth: got 3, expected at most 1 with small"),
        (("--family", "autoencoder", "--iw-samples", "2", "--iw-epochs", "1"), "iw_epochs: got some with an autoenc"),
        *(
            (("--family", "autoencoder", *given), f"{name}: got {given[1]} with an autoencoder, expected none")
            for name, given in OF_A_DENSITY.items()
        ),
        (("--out", "{run}"), "expected a new folder, or --resume to go on"),
    ],
)
def test_what_no_picture_would_put_right_is_refused_before_one_is_read(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.delattr(data, "read")
    given = [str(finished) if argument == "{run}" else argument for argument in arguments]
    done = called("fit", "--out", tmp_path / "new", *given)
    assert done.exit_code == 2
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("begun", "given", "sentence"),
    [
        ((), ("--epochs", "3"), "epochs: got 3, expected 2"),
        ((), ("--compile",), "compile: got True, expected False"),
        ((), ("--size", "9x9"), "size: got 9x9, expected 8x8"),
        ((), ("--channels", "3"), "channels: got 3, expected 1"),
        ((), ("--start-from", "elsewhere/others"), "start_from: got others, expected None"),
        (("--likelihood", "bernoulli"), ("--likelihood", "gaussian"), "likelihood: got gaussian, expected bernoulli"),
        (("--preset", "mlp"), ("--preset", "small"), "preset: got small, expected mlp"),
        (("--family", "autoencoder"), ("--beta", "4"), "beta: got 4.0, expected 1.0"),
    ],
)
def test_another_setting_than_the_runs_is_named_as_it_was_given_and_before_a_picture_is_read(
    few: Path,
    tmp_path: Path,
    unmeasured: None,
    monkeypatch: pytest.MonkeyPatch,
    begun: tuple[str, ...],
    given: tuple[str, ...],
    sentence: str,
) -> None:
    folder = tmp_path / "run"
    assert called("fit", "--data", few, "--out", folder, *TINY, *begun).exit_code == 0
    same = called("fit", "--data", few, "--out", folder, "--resume", *TINY, *begun)
    assert same.exit_code == 0, same.stderr
    monkeypatch.delattr(data, "read")
    done = called("fit", "--data", few, "--out", folder, "--resume", *given)
    assert done.exit_code == 2
    assert done.stderr == f"vae-train: {sentence}, with which {folder} was started\n"
    if given[0] not in ("--epochs", "--compile", "--start-from", "--beta"):
        done = called("fit", "--data", few, "--out", tmp_path / "other", "--start-from", folder, *given)
        assert done.exit_code == 2
        assert done.stderr == f"vae-train: {sentence}, as the run has that it is to start from\n"


def test_a_run_that_another_process_trains_is_refused_before_a_picture_is_read(
    few: Path, tmp_path: Path, unmeasured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    assert called("fit", "--data", few, "--out", folder, *TINY).exit_code == 0
    monkeypatch.delattr(data, "read")
    with lock.held(folder):
        done = called("fit", "--data", few, "--out", folder, "--resume")
    assert done.exit_code == 2
    assert done.stderr == (
        f"vae-train: {folder}: got a run that another process is training, expected one that none is;"
        " wait for it, or stop it\n"
    )


@pytest.mark.parametrize(
    "error",
    [MemoryError("Unable to allocate 9 TiB"), RuntimeError("not enough memory: you tried to allocate 9 bytes")],
)
def test_memory_that_is_not_there_is_one_sentence(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(run, "train", failing)
    done = called("fit", "--data", few, "--out", tmp_path / "run", *TINY)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == (
        f"vae-train: {error}; smaller pictures or networks (fit --size, --features, --latent-dim) take less, and in"
        " training smaller batches (--batch-size, --accumulate)"
    )
    monkeypatch.setattr(run, "train", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("another")))
    assert isinstance(called("fit", "--data", few, "--out", tmp_path / "other", *TINY).exception, RuntimeError)


def test_a_run_too_short_for_its_warm_ups_says_so_at_its_start(few: Path, tmp_path: Path, unmeasured: None) -> None:
    settings = (*TINY, "--epochs", "1", "--kl-warmup-epochs", "2", "--lr-warmup-steps", "50", "--batch-size", "9")
    done = called("fit", "--data", few, "--out", tmp_path / "run", *settings)
    assert done.exit_code == 0
    never = "it never comes to 0.002, as it would with --epochs 26"
    rises = "the learning rate rises over 50 steps (--lr-warmup-steps) and the run has 2"
    assert f"warning: {rises}: {never}" in done.stderr
    rises = "the weight of the KL term rises over 2 epochs (--kl-warmup-epochs) and the run has 1"
    assert f"warning: {rises}: it never comes to 1, as it would with --epochs 3" in done.stderr
    enough = (*TINY, "--kl-warmup-epochs", "1", "--lr-warmup-steps", "1", "--batch-size", "9")
    assert "warning" not in called("fit", "--data", few, "--out", tmp_path / "other", *enough).stderr


def test_a_number_that_is_none_ends_the_command_with_a_sentence_and_exit_code_1(few: Path, tmp_path: Path) -> None:
    """A learning rate without sense: after one step no term is finite."""
    options = ("--lr-warmup-steps", "0", "--learning-rate", "1e30", "--batch-size", "2")
    done = called("fit", "--data", few, "--out", tmp_path / "run", *TINY, *options)
    assert done.exit_code == 1
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(
        r"vae-train: step \d+: (recon|kl|gradient) is (nan|inf), expected a finite number;"
        r" nothing was saved before in \S+, where another run may start",
        last,
    )
    assert checkpoint.saved_step(tmp_path / "run") is None


@pytest.fixture
def stopped_at_4(few: Path, tmp_path: Path, unmeasured: None) -> tuple[Path, RunConfig]:
    """A run of twelve steps that was stopped at its fourth."""
    folder = tmp_path / "run"
    done = called("fit", "--data", few, "--out", folder, *TINY, "--epochs", "2", "--batch-size", "3")
    assert done.exit_code == 0, done.stderr
    config = checkpoint.read_config(folder)
    learner = Learner(config.model, training=config.training, n_images=18)
    for _ in zip(range(4), learner.run(data.read(few).train), strict=False):
        pass
    checkpoint.save(folder, learner)
    return folder, config


def test_another_count_of_threads_warns_and_goes_on(few: Path, stopped_at_4: tuple[Path, RunConfig]) -> None:
    folder, _ = stopped_at_4
    machine = folder / "state" / "machine.json"
    machine.write_text(json.dumps(json.loads(machine.read_text()) | {"threads": 64}))
    done = called("fit", "--data", few, "--out", folder, "--resume")
    assert done.exit_code == 0, done.stderr
    now = torch.get_num_threads()
    warning = f"vae-train: warning: threads was 64, is {now}; the last digits may differ from now on"
    assert done.stderr.splitlines()[0] == warning
    assert checkpoint.saved_step(folder) == 12
    assert "warning" not in called("fit", "--data", few, "--out", folder, "--resume").stderr


def test_a_disk_that_is_full_ends_the_command_with_a_sentence_and_keeps_the_last_save(
    few: Path, stopped_at_4: tuple[Path, RunConfig], full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    folder, config = stopped_at_4
    before = {name: (folder / name).read_bytes() for name in (STATE, "model.safetensors", "config.json")}
    room_bytes = len(before[STATE]) - 1
    with full_disk(room_bytes):
        done = called("fit", "--data", few, "--out", folder, "--resume")
    assert done.exit_code == 2
    assert re.fullmatch(r"vae-train: \S+: File too large", done.stderr.splitlines()[-1])
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert not list(folder.rglob("*.tmp"))
    assert called("fit", "--data", few, "--out", folder, "--resume").exit_code == 0
    whole = Learner(config.model, training=config.training, n_images=18)
    list(whole.run(data.read(few).train))
    got = safetensors.torch.load_file(folder / STATE)
    assert all(torch.equal(got[name], tensor) for name, tensor in whole.state().items())


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """Meanwhile no file of this process may grow beyond so many bytes. Python ignores the signal: writes raise."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limit(room_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


def test_a_run_with_a_validation_part_is_measured_on_other_and_fewer_pictures_too(tmp_path: Path) -> None:
    small = ("--epochs", "1", "--features", "4", "--latent-dim", "3")
    assert called("fit", "--out", tmp_path / "run", "--validation", "300", *small).exit_code == 0
    fewer = tmp_path / "fewer.npz"
    np.savez(fewer, images=np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8))
    done = called("evaluate", tmp_path / "run", "--data", fewer)
    assert done.exit_code == 0, done.stderr
    assert '"data": "fewer"' in done.stdout
    assert done.stderr == (
        f"vae-train: warning: these are other pictures than those of digits that {tmp_path / 'run'} learnt from and was"
        " tested with; its figures, card and fitted prior are now those of these\n"
    )


def test_ctrl_c_while_a_run_is_measured_says_what_is_left_to_do(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "measure", stopped)
    done = called("fit", "--data", few, "--out", tmp_path / "run", *TINY)
    assert done.exit_code == 128 + signal.SIGINT
    assert done.stderr.endswith("\nStopped while it was measured. The same command with --resume measures it again.\n")
    monkeypatch.undo()
    again = called("fit", "--data", few, "--out", tmp_path / "run", *TINY, "--resume")
    assert again.exit_code == 0, again.stderr
    assert (tmp_path / "run" / "metrics.json").exists()


def test_what_a_run_validated_on_is_held_back_from_its_evaluation_too(tmp_path: Path) -> None:
    small = ("--epochs", "1", "--features", "4", "--latent-dim", "3")
    assert called("fit", "--out", tmp_path / "run", "--validation", "300", *small).exit_code == 0
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert written["samples"]["protocol"]["training_images"] == 1317
    assert called("evaluate", tmp_path / "run").exit_code == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == written


def test_an_estimate_of_log_p_has_the_protocol_that_was_asked_for_and_is_not_made_twice(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    flags = ("--nll-images", 5, "--nll-draws", 2, "--nll-samples", "3,2", "--precision", "bf16", "--seed", 4)
    assert called("evaluate", folder, "--nll", *flags).exit_code == 0
    found = json.loads((folder / "metrics.json").read_text())["nll"]
    told = {name: found["protocol"][name] for name in ("n_images", "draws", "samples", "precision", "seed")}
    assert told == {"n_images": 5, "draws": 2, "samples": [2, 3], "precision": "bf16", "seed": 4}
    assert found["3"]["nll"] != found["2"]["nll"]
    monkeypatch.delattr(nll, "_weigh")  # the second time it is read from the run's state
    assert called("evaluate", folder, "--nll", *flags).exit_code == 0
    assert json.loads((folder / "metrics.json").read_text())["nll"] == found


def test_the_exit_codes_are_those_of_the_process(tmp_path: Path) -> None:
    done = vae_train("evaluate", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("vae-train: ")


def test_the_docs_python_lines_run(finished: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(code.replace("runs/digits", str(finished)), names)  # noqa: S102  # our own page
    assert isinstance(names["x_hat"], torch.Tensor)
    assert names["x_hat"].shape == (64, 1, 8, 8)
