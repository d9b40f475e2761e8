"""Small pictures and small runs that the tests of `model` share."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from model.data import Dataset
from model.training import Learner, TrainConfig
from model.vae import VAE, ModelConfig

TINY = {"latent_dim": 3, "channels_base": 4}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Networks this small gain nothing from a second thread, and lose much where other work keeps it busy."""
    were = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(were)


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
    return Learner(ModelConfig(9, 6, 1, **TINY), training=TrainConfig(seed=1), n_images=30).vae.eval()
