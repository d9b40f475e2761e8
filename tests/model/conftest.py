"""Small pictures and small models that the tests of `model` share."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from model.checkpoint import DataConfig, RunConfig
from model.data import Dataset
from model.training import TrainConfig
from model.vae import VAE, ModelConfig

TINY = {"latent_dim": 3, "features": 4}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Networks this small gain nothing from a second thread, and lose much where other work keeps it busy."""
    were = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(were)


@pytest.fixture(autouse=True)
def _weights_do_not_depend_on_which_tests_ran_before() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def images() -> np.ndarray:
    """Blurred random pictures: (40, 9, 6, 1) uint8."""
    coarse = np.random.default_rng(0).integers(0, 256, (40, 3, 2, 1), np.uint8)
    return coarse.repeat(3, axis=1).repeat(3, axis=2)


@pytest.fixture
def dataset(images: np.ndarray) -> Dataset:
    return Dataset(name="blocks", train=images[:30], test=images[30:])


@pytest.fixture
def vae() -> VAE:
    return VAE(ModelConfig(9, 6, 1, **TINY)).eval()


@pytest.fixture
def config(dataset: Dataset) -> RunConfig:
    """A run of twelve steps: three epochs of four."""
    return RunConfig(
        model=ModelConfig(9, 6, 1, **TINY),
        training=TrainConfig(epochs=3, batch_size=8, lr_warmup_steps=2),
        data=DataConfig.of(dataset, validation_seed=0),
    )
