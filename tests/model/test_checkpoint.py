"""Checkpoints come back as they went, and a wrong one is refused with a sentence."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from model import checkpoint
from model.checkpoint import DataConfig, Origin, RunConfig
from model.data import Dataset
from model.errors import BadCheckpoint
from model.pixels import pixels
from model.training import Learner, TrainConfig
from model.vae import ModelConfig

CONFIG = RunConfig(
    model=ModelConfig(9, 6, 1, latent_dim=3, features=4, sigma="optimal", logvar_range=(-9.0, 9.0)),
    training=TrainConfig(epochs=2, batch_size=8, seed=3),
    data=DataConfig(name="blocks", n_train=30, n_validation=0, validation_seed=0, n_test=10, sha256="0" * 64),
)
FILES = ["config.json", "model.safetensors", "probe.safetensors", "state/machine.json", "state/training.safetensors"]


@pytest.fixture
def learner(dataset: Dataset) -> Learner:
    learner = Learner(CONFIG.model, training=CONFIG.training, n_images=30)
    next(learner.run(dataset.train))
    return learner


@pytest.fixture
def folder(tmp_path: Path, dataset: Dataset, learner: Learner) -> Path:
    checkpoint.write_config(tmp_path / "run", CONFIG, probe=dataset.test)
    checkpoint.save(tmp_path / "run", learner)
    return tmp_path / "run"


def test_a_checkpoint_comes_back_as_it_went(folder: Path, learner: Learner, dataset: Dataset) -> None:
    checkpoint.write_metrics(folder, {"elbo": -1.5})
    found = checkpoint.read(folder)
    assert found.config == CONFIG
    assert found.metrics == {"elbo": -1.5}
    assert np.array_equal(found.probe, dataset.test)
    assert not found.vae.training
    x = pixels(dataset.test)
    assert torch.equal(found.vae.encode(x).mu, learner.average.encode(x).mu)
    assert not torch.equal(found.vae.encode(x).mu, learner.vae.encode(x).mu)


def test_the_origin_of_a_run_comes_back_also_from_before_it_remembered_others(folder: Path) -> None:
    origin = Origin("many", sha256="ab" * 32, same_test=True, tests=("cd" * 32,))
    checkpoint.write_config(folder, dataclasses.replace(CONFIG, origin=origin), probe=np.zeros((1, 9, 6, 1), np.uint8))
    assert checkpoint.read_config(folder).origin == origin
    content = json.loads((folder / "config.json").read_text())
    del content["origin"]["tests"]
    (folder / "config.json").write_text(json.dumps(content))
    assert checkpoint.read_config(folder).origin == dataclasses.replace(origin, tests=())
    (folder / "config.json").write_text(json.dumps(content | {"origin": "many"}))
    with pytest.raises(
        BadCheckpoint, match=r"config\.json, origin: got 'many', expected name, same_test, sha256, tests"
    ):
        checkpoint.read_config(folder)


def test_what_a_run_learns_from_is_told_of_its_data_set(dataset: Dataset) -> None:
    told = DataConfig("blocks", n_train=30, n_validation=0, validation_seed=4, n_test=10, sha256=dataset.sha256)
    assert DataConfig.of(dataset, validation_seed=4) == told


def test_metrics_may_be_absent(folder: Path) -> None:
    assert checkpoint.read(folder).metrics is None


def test_a_folder_holds_json_and_tensors_and_no_rest_of_writing(folder: Path) -> None:
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert files == FILES
    assert json.loads((folder / "config.json").read_text())["format"] == 2


def test_a_state_comes_back_bit_for_bit(folder: Path, learner: Learner) -> None:
    other = Learner(CONFIG.model, training=CONFIG.training, n_images=30)
    checkpoint.load_state(folder, other)
    assert other.step == 1
    for name, tensor in learner.state().items():
        assert torch.equal(other.state()[name], tensor), name


def test_without_a_save_a_learner_stays_at_its_start(tmp_path: Path) -> None:
    learner = Learner(CONFIG.model, training=CONFIG.training, n_images=30)
    checkpoint.load_state(tmp_path, learner)
    assert learner.step == 0


def test_a_save_that_fails_leaves_the_one_before(
    folder: Path, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = (folder / "state/training.safetensors").read_bytes()
    learner.step += 1
    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(folder, learner)
    assert (folder / "state/training.safetensors").read_bytes() == before
    checkpoint.read(folder)


def test_a_state_of_another_model_is_refused(folder: Path) -> None:
    other = Learner(dataclasses.replace(CONFIG.model, latent_dim=4), training=CONFIG.training, n_images=30)
    with pytest.raises(
        BadCheckpoint, match=r"training\.safetensors, average\.decoder\.dense\.weight: got .*3\), expected .*4\)"
    ):
        checkpoint.load_state(folder, other)


KILLED_WHILE_SAVING = """
import os, random, signal, sys, time
from pathlib import Path
from model import checkpoint
from model.training import Learner
import safetensors.torch

folder = Path(sys.argv[1])
config = checkpoint.read_config(folder)
learner = Learner(config.model, training=config.training, n_images=30)
random.seed(0)
cut_short = 0
for _ in range(20):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        while True:
            learner.step += 1
            checkpoint.save(folder, learner)
            os.write(writing, learner.step.to_bytes(4, "big"))
    said = os.read(reading, 4)
    time.sleep(random.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(writing)
    while more := os.read(reading, 4):
        said = more
    confirmed = int.from_bytes(said, "big")
    os.close(reading)
    saved = checkpoint.saved_step(folder)
    assert confirmed <= saved <= confirmed + 1, (confirmed, saved)
    checkpoint.load_state(folder, learner)
    checkpoint.read(folder)
    assert learner.step == saved
    cut_short += any(folder.rglob("*.tmp"))
checkpoint.save(folder, learner)
print(cut_short, len(list(folder.rglob("*.tmp"))))
"""


def test_a_kill_while_saving_never_loses_the_save_before(folder: Path) -> None:
    """Twenty kills of a process that does nothing but save; what one cut short is overwritten by the next save."""
    command = (sys.executable, "-c", KILLED_WHILE_SAVING, folder)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    cut_short, left = map(int, done.stdout.split())
    assert cut_short > 0, "no kill came in the middle of writing"
    assert left == 0


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from model import checkpoint
from model.training import Learner

folder = Path(sys.argv[1])
config = checkpoint.read_config(folder)
learner = Learner(config.model, training=config.training, n_images=30)
checkpoint.load_state(folder, learner)
learner.step += 1
# As many threads as the run was saved with, or the file that names them would rightly change.
torch.set_num_threads(checkpoint.machine_facts(folder)["threads"])
# Python ignores the signal that would kill it here, so that writing raises, as it does on a disk that is full.
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
checkpoint.save(folder, learner)
"""


@pytest.mark.parametrize(
    ("room_bytes", "cut_short"),
    [(1000, "model.safetensors"), (10, "state/machine.json"), (5000, "state/training.safetensors")],
)
def test_a_full_disk_leaves_the_save_before_and_no_half_file(folder: Path, room_bytes: int, cut_short: str) -> None:
    assert (folder / cut_short).stat().st_size > room_bytes
    before = {name: (folder / name).read_bytes() for name in FILES}
    command = (sys.executable, "-c", FULL_DISK, folder, str(room_bytes))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "OSError: [Errno 27] File too large" in done.stderr
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert {name: (folder / name).read_bytes() for name in files} == before


def test_a_save_says_what_machine_it_was_made_on(folder: Path, learner: Learner) -> None:
    assert checkpoint.machine_facts(folder) == learner.machine.facts()
    assert checkpoint.saved_step(folder) == 1


def test_before_the_first_save_there_is_no_step_and_no_machine(tmp_path: Path) -> None:
    assert checkpoint.saved_step(tmp_path) is None
    assert checkpoint.machine_facts(tmp_path) == {}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "probe.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(
        BadCheckpoint, match=f"{name}: got No such file or directory, expected a file that vae-train wrote"
    ):
        checkpoint.read(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "probe.safetensors"])
def test_truncated_tensors_are_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-5])
    with pytest.raises(BadCheckpoint, match=f"{name}: got something else, expected whole safetensors"):
        checkpoint.read(folder)


@pytest.mark.parametrize("content", ["{", "\x00", "[]"])
def test_a_config_that_is_no_json_object_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(BadCheckpoint, match=r"config\.json: got .*, expected (a )?JSON"):
        checkpoint.read(folder)


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        (None, {"format": 1}, "got format 1, expected 2"),
        (None, {"format": None}, "got format None, expected 2"),
        (None, {"model": None}, "config.json, model: got None, expected channels, depth"),
        ("model", {"width_of_a_layer": 3}, "config.json, model: got .*width_of_a_layer, expected"),
        ("model", {"depth": 3}, "config.json, model: depth: got 3, expected at most 1 with small"),
        ("model", {"latent_dim": 0}, "config.json, model: latent_dim: got 0"),
        ("model", {"latent_dim": "3"}, "config.json, model: latent_dim: got '3'"),
        ("model", {"logvar_range": [1.0]}, "config.json, model: "),
        ("training", {"learning_rate": "fast"}, "config.json, training: "),
        ("training", {"beta": -1}, "config.json, training: beta: got -1"),
    ],
)
def test_a_wrong_config_is_refused(folder: Path, part: str | None, change: dict[str, object], sentence: str) -> None:
    content = json.loads((folder / "config.json").read_text())
    (content if part is None else content[part]).update(change)
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(BadCheckpoint, match=sentence):
        checkpoint.read(folder)


def test_weights_of_another_shape_name_or_type_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    wrong = {
        "got none, expected torch.float32": {k: v for k, v in weights.items() if k != "encoder.head.bias"},
        "got torch.float32 .6,., expected none": weights | {"extra": torch.zeros(6)},
        "got torch.float32 .4,., expected torch.float32 .6,.": weights | {"encoder.head.bias": torch.zeros(4)},
        "got torch.float16 .6,., expected torch.float32 .6,.": weights
        | {"encoder.head.bias": torch.zeros(6, dtype=torch.float16)},
    }
    for sentence, tensors in wrong.items():
        safetensors.torch.save_file(tensors, path)
        with pytest.raises(BadCheckpoint, match=f"model.safetensors, .*: {sentence}"):
            checkpoint.read(folder)


@pytest.mark.parametrize("shape", [(2, 9, 7, 1), (0, 9, 6, 1), (9, 6, 1), ()])
def test_a_probe_of_another_shape_or_of_no_pictures_is_refused(folder: Path, shape: tuple[int, ...]) -> None:
    safetensors.torch.save_file({"images": torch.zeros(shape, dtype=torch.uint8)}, folder / "probe.safetensors")
    with pytest.raises(BadCheckpoint) as refused:
        checkpoint.read(folder)
    told = f"got torch.uint8 of shape {shape}, expected uint8 of shape (n, 9, 6, 1), n from 1"
    assert str(refused.value) == f"{folder / 'probe.safetensors'}, images: {told}"


def test_a_pickle_in_the_place_of_tensors_is_refused_and_not_run(folder: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(BadCheckpoint, match="expected whole safetensors"):
        checkpoint.read(folder)
