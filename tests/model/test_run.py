"""A run in its folder: started, resumed, refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from model import checkpoint, run
from model.checkpoint import DataConfig, RunConfig
from model.data import Dataset
from model.errors import BadData, BadSetting
from model.training import TrainConfig
from model.vae import ModelConfig


@pytest.fixture
def config(dataset: Dataset) -> RunConfig:
    return RunConfig(
        model=ModelConfig(9, 6, 1, latent_dim=3, channels_base=4),
        training=TrainConfig(epochs=2, batch_size=8),
        data=DataConfig(name="blocks", n_train=30, n_test=10, sha256=dataset.sha256),
    )


def test_a_run_ends_as_a_checkpoint_with_metrics_and_pictures(
    tmp_path: Path, config: RunConfig, dataset: Dataset
) -> None:
    folder = tmp_path / "run"
    outcome = run.train(folder, run.start(folder, config, dataset=dataset), dataset)
    assert outcome == run.Outcome(step=8, steps=8, signal_number=None)
    metrics = run.measure(folder, dataset=dataset, draws=2, seed=7)
    assert metrics["protocol"]["draws"] == 2
    found = checkpoint.read(folder)
    assert found.metrics == metrics
    assert np.array_equal(found.probe, dataset.test)
    assert len(list((folder / "pictures").glob("*.png"))) == 3


def test_a_finished_run_that_is_resumed_has_nothing_left_to_do(
    tmp_path: Path, config: RunConfig, dataset: Dataset
) -> None:
    run.train(tmp_path, run.start(tmp_path, config, dataset=dataset), dataset)
    weights = (tmp_path / "model.safetensors").read_bytes()
    assert run.train(tmp_path, run.resume(tmp_path, config), dataset).step == 8
    assert (tmp_path / "model.safetensors").read_bytes() == weights


def test_a_place_with_something_in_it_is_refused(tmp_path: Path, config: RunConfig, dataset: Dataset) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadSetting, match="expected a new folder, or --resume to go on"):
        run.start(tmp_path, config, dataset=dataset)
    with pytest.raises(BadSetting, match="expected a new folder"):
        run.start(tmp_path / "notes.txt", config, dataset=dataset)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [("model", "latent_dim", 4), ("training", "epochs", 3), ("training", "seed", 1), ("data", "sha256", "0")],
)
def test_resuming_with_another_setting_is_refused(
    tmp_path: Path, config: RunConfig, dataset: Dataset, part: str, field: str, value: object
) -> None:
    run.start(tmp_path, config, dataset=dataset)
    changed = dataclasses.replace(getattr(config, part), **{field: value})
    other = dataclasses.replace(config, **{part: changed})
    was = getattr(getattr(config, part), field)
    with pytest.raises(BadSetting, match=f"{field}: got {value}, expected {was}, with which"):
        run.resume(tmp_path, other)


def test_pictures_of_another_size_cannot_measure_a_run(
    tmp_path: Path, config: RunConfig, dataset: Dataset, images: np.ndarray
) -> None:
    run.train(tmp_path, run.start(tmp_path, config, dataset=dataset), dataset)
    other = Dataset(name="wide", train=images[:, :4], test=images[:, :4])
    with pytest.raises(BadData, match=r"wide: got pictures of shape \(4, 6, 1\), expected \(9, 6, 1\)"):
        run.measure(tmp_path, dataset=other)
