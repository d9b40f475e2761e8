"""The command as a person runs it: real processes, real signals, sentences and exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import typer
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from model.__main__ import app
from model.training import TrainConfig
from model.vae import ModelConfig

TINY = ("--width", "4", "--latent-dim", "3", "--epochs", "2", "--batch-size", "64")
DOCS = Path(__file__).parents[2] / "docs" / "training.md"
COMMAND = (sys.executable, "-m", "model")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


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
    for shown in ("elbo", "recon", "kl", "images/s"):
        assert shown in done.stderr
    return folder


def test_fit_leaves_a_whole_checkpoint(finished: Path) -> None:
    names = {str(file.relative_to(finished)) for file in finished.rglob("*") if file.is_file()}
    assert names == {
        "config.json",
        "metrics.json",
        "model.safetensors",
        "probe.safetensors",
        "state/training.safetensors",
        "pictures/interpolations.png",
        "pictures/reconstructions.png",
        "pictures/samples.png",
    }


def test_evaluate_measures_a_run_anew(finished: Path) -> None:
    before = json.loads((finished / "metrics.json").read_text())
    again = called("evaluate", finished)
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout) == before
    more = called("evaluate", finished, "--draws", 3, "--seed", 1)
    assert json.loads(more.stdout)["protocol"]["draws"] == 3
    assert json.loads(more.stdout)["mse"] == before["mse"]


def stop_after_the_first_save(folder: Path, arguments: tuple[str, ...], number: signal.Signals) -> str:
    """A run that was sent a signal soon after its first epoch; returns what it said."""
    command = (*COMMAND, "fit", "--out", str(folder), *arguments)
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while not (folder / "state" / "training.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    return said


def test_ctrl_c_saves_and_the_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    arguments = ("--width", "4", "--latent-dim", "3", "--epochs", "12", "--batch-size", "32")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    said = stop_after_the_first_save(stopped, arguments, signal.SIGINT)
    step = int(safetensors.torch.load_file(stopped / "state" / "training.safetensors")["step"])
    assert 51 <= step < 612
    assert f"Stopped and saved at step {step} of 612." in said
    assert "The same command with --resume goes on from there." in said

    assert vae_train("fit", "--out", stopped, *arguments, "--resume").returncode == 0
    assert vae_train("fit", "--out", whole, *arguments).returncode == 0
    for name in ("model.safetensors", "state/training.safetensors"):
        got, expected = (safetensors.torch.load_file(folder / name) for folder in (stopped, whole))
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[key], expected[key]) for key in expected)
    assert (stopped / "metrics.json").read_text() == (whole / "metrics.json").read_text()


def test_a_polite_kill_saves_too(tmp_path: Path) -> None:
    arguments = ("--width", "4", "--epochs", "100", "--batch-size", "32")
    assert "Stopped and saved at step" in stop_after_the_first_save(tmp_path / "run", arguments, signal.SIGTERM)


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


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("fit", "--out", "{run}"), "expected a new folder, or --resume to go on"),
        (("fit", "--out", "{run}", "--resume", "--epochs", "3"), "epochs: got 3, expected 2, with which"),
        (("fit", "--out", "{run}", "--resume", "--sigma", "0.5"), "sigma: got 0.5, expected 0.3, with which"),
        (("fit", "--out", "{new}", "--resume"), "config.json: got No such file or directory"),
        (("fit", "--out", "{new}", "--data", "{new}"), "got nothing there, expected a folder of pictures"),
        (("fit", "--out", "{new}", "--size", "28"), "--size: got '28', expected HxW in pixels"),
        (("fit", "--out", "{new}", "--size", "28x28"), "got pictures of shape (8, 8, 1), expected (28, 28, 1)"),
        (("fit", "--out", "{new}", "--sigma", "-1"), "sigma: got -1.0, expected a number above 0"),
        (("fit", "--out", "{new}", "--learning-rate", "nan"), "learning_rate: got nan"),
        (("evaluate", "{new}"), "config.json: got No such file or directory"),
    ],
)
def test_what_a_person_got_wrong_is_one_sentence_and_exit_code_2(
    finished: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    places = {"{run}": str(finished), "{new}": str(tmp_path / "new")}
    done = called(*(places.get(argument, argument) for argument in arguments))
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("vae-train: ")
    assert not (tmp_path / "new").exists()


def test_a_number_that_is_none_ends_the_command_with_a_sentence_and_exit_code_1(tmp_path: Path) -> None:
    done = called("fit", "--out", tmp_path / "run", *TINY, "--sigma", "1e-30")
    assert done.exit_code == 1
    last = done.stderr.splitlines()[-1]
    assert last == "vae-train: step 0: recon is inf, expected a finite number; what was saved before is kept"


def test_the_exit_codes_are_those_of_the_process(tmp_path: Path) -> None:
    done = vae_train("evaluate", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("vae-train: ")


def test_the_docs_list_every_option_with_its_default() -> None:
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `--")]
    defaults = {**vars(TrainConfig), **vars(ModelConfig)}
    fit = typer.main.get_command(app).commands["fit"]  # type: ignore[attr-defined]
    for option in fit.params:
        if option.name == "resume":
            continue  # described in a paragraph of its own
        (row,) = (row for row in rows if f"`{option.opts[0]}" in row.split("|")[1])
        name = {"width": "channels_base"}.get(option.name, option.name)
        if name in defaults:
            assert str(defaults[name]).removesuffix(".0") == row.split("|")[2].strip(" `"), option.name


def test_the_docs_python_lines_run(finished: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(code.replace("runs/digits", str(finished)), names)  # noqa: S102  # our own page
    assert isinstance(names["x_hat"], torch.Tensor)
    assert names["x_hat"].shape == (64, 1, 8, 8)
