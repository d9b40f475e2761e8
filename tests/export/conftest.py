"""One small trained run, shared by all tests of export."""

from pathlib import Path

import pytest
import torch

from model import data, run
from model.checkpoint import DataConfig, RunConfig
from model.training import TrainConfig
from model.vae import ModelConfig


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an epoch on scikit-learn's digits."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    dataset = data.read(None, size=None, channels=None)
    height, width, channels = dataset.image_shape
    config = RunConfig(
        model=ModelConfig(height=height, width=width, channels=channels, latent_dim=5, features=8),
        training=TrainConfig(epochs=1),
        data=DataConfig(
            name=dataset.name,
            n_train=len(dataset.train),
            n_validation=0,
            validation_seed=0,
            n_test=len(dataset.test),
            sha256=dataset.sha256,
        ),
    )
    run.train(folder, run.start(folder, config, dataset=dataset), dataset)
    run.measure(folder, dataset=dataset)
    return folder


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)
