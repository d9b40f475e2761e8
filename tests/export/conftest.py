"""Small trained runs, shared by all tests of export."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from export.__main__ import app
from model import checkpoint, data, measuring, run
from model.checkpoint import DataConfig, RunConfig
from model.training import Learner, TrainConfig
from model.vae import ModelConfig


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an epoch on scikit-learn's digits, with its card and pictures."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    dataset = data.read(None, size=None, channels=None)
    height, width, channels = dataset.image_shape
    config = RunConfig(
        model=ModelConfig(height=height, width=width, channels=channels, latent_dim=5, features=8),
        training=TrainConfig(epochs=1),
        data=DataConfig.of(dataset, validation_seed=0),
    )
    run.train(folder, run.start(folder, config, dataset=dataset), dataset)
    measuring.measure(folder, dataset=dataset)
    return folder


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small autoencoder that was saved before its first step."""
    folder = tmp_path_factory.mktemp("runs") / "untrained"
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    config = RunConfig(
        model=ModelConfig(8, 8, 1, family="autoencoder", preset="mlp", features=8, latent_dim=3),
        training=TrainConfig(epochs=1),
        data=DataConfig(name="noise", n_train=8, n_validation=0, validation_seed=0, n_test=8, sha256=""),
    )
    torch.manual_seed(0)
    checkpoint.write_config(folder, config, probe=images)
    checkpoint.save(folder, Learner(config.model, training=config.training, n_images=8))
    return folder


@pytest.fixture(autouse=True)
def _same_weights() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def made(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the trained run, as the command makes it; not to be changed."""
    folder = tmp_path_factory.mktemp("bundles") / "digits"
    result = CliRunner().invoke(app, ["make", str(trained), str(folder), "--licence", "MIT"])
    assert result.exit_code == 0, result.output
    return folder
