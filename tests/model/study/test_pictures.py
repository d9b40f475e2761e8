"""A study's sheets: the same pairs and draws for every model, and what each makes of them."""

import dataclasses

import numpy as np
import pytest
import torch

from model.data import Dataset
from model.pixels import pixels, to_image
from model.study import pictures
from model.study.plan import KINDS, Kind
from model.vae import VAE, ModelConfig


@pytest.fixture
def models() -> dict[Kind, VAE]:
    return {
        kind: VAE(ModelConfig(9, 6, 1, latent_dim=3, features=4, family=kind.family)).eval().requires_grad_(False)
        for kind in KINDS
    }


@pytest.fixture
def labelled(dataset: Dataset) -> Dataset:
    return dataclasses.replace(dataset, train_labels=np.arange(30) % 2, test_labels=np.arange(10) % 2)


def test_all_four_go_between_the_same_pictures(models: dict[Kind, VAE], labelled: Dataset) -> None:
    sheet = pictures.interpolations(models, labelled)
    assert sheet.tiles.shape[0] % 4 == 0
    assert list(sheet.row_labels[:4]) == ["autoencoder", "VAE, beta 0", "VAE", "VAE, beta 4"]
    for start in range(0, len(sheet.tiles), 4):
        for row, vae in enumerate(models.values()):
            first, *path, last = sheet.tiles[start + row]
            assert np.array_equal(first, sheet.tiles[start, 0])
            assert np.array_equal(last, sheet.tiles[start, -1])
            mu = vae.encode(pixels(np.stack([first, last]))).mu
            expected = to_image(vae.decode(torch.stack([mu[0], mu.mean(0), mu[1]]))).numpy()
            shown = np.stack([path[0], path[5], path[-1]])
            assert np.abs(shown.astype(int) - expected).max() <= 1
        ends = [int(np.flatnonzero((labelled.test == sheet.tiles[start, at]).all((1, 2, 3)))[0]) % 2 for at in (0, -1)]
        assert ends[0] != ends[1], "pairs are of different classes"


def test_where_there_is_one_class_pairs_are_of_that(models: dict[Kind, VAE], dataset: Dataset) -> None:
    alike = dataclasses.replace(dataset, test_labels=np.zeros(10, np.int64))
    assert len(pictures.interpolations(models, alike).tiles) == 16


def test_the_strip_is_the_first_path_of_autoencoder_and_vae(models: dict[Kind, VAE], labelled: Dataset) -> None:
    strip, all_four = pictures.strip(models, labelled), pictures.interpolations(models, labelled)
    assert list(strip.row_labels) == ["autoencoder", "VAE"]
    assert np.array_equal(strip.tiles, all_four.tiles[[0, 2]])


def test_samples_of_all_four_are_of_the_same_draws(models: dict[Kind, VAE]) -> None:
    sheet = pictures.samples(models)
    columns = sheet.tiles.shape[1]
    z = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))[: 2 * columns]
    for row, vae in enumerate(models.values()):
        shown = sheet.tiles[2 * row : 2 * row + 2].reshape(-1, 9, 6, 1)
        assert np.abs(shown.astype(int) - to_image(vae.decode(z)).numpy()).max() <= 1


def test_fitted_samples_come_from_where_the_codes_are(models: dict[Kind, VAE], labelled: Dataset) -> None:
    sheet = pictures.fitted_samples(models, labelled)
    assert sheet.tiles.shape == pictures.samples(models).tiles.shape
    assert not np.array_equal(sheet.tiles, pictures.samples(models).tiles)
