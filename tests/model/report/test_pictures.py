"""Pictures of a run: they show what they say, in the order that they say."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.pixels import pixels
from model.report import pictures
from model.report.pictures import Nearest
from model.vae import VAE, ModelConfig

KL = [0.5, 2.0, 0.001]
METRICS = {"kl_per_dimension": KL, "mu": {"variance": [0.4, 0.9, 0.0]}}


def _vae(**options: Any) -> VAE:
    torch.manual_seed(0)
    vae = VAE(ModelConfig(9, 6, 1, **{"latent_dim": 3, "features": 4, **options})).eval()
    with torch.no_grad():
        # Untrained networks hardly react to their inputs; these do.
        for weight in vae.parameters():
            weight.mul_(3)
    return vae


@torch.no_grad()
def _mu(vae: VAE, images: np.ndarray) -> torch.Tensor:
    return vae.encode(vae.likelihood.settle(pixels(images))).mu


@torch.no_grad()
def _decoded(vae: VAE, z: torch.Tensor) -> np.ndarray:
    return np.round(vae.decode(z).numpy().transpose(0, 2, 3, 1) * 255).astype(np.uint8)


def _equal_within_one(got: np.ndarray, expected: np.ndarray) -> bool:
    # Batches of other sizes may round the last digit otherwise.
    return got.shape == expected.shape and int(abs(got.astype(int) - expected.astype(int)).max()) <= 1


def test_inputs_stand_above_their_reconstructions(images: np.ndarray) -> None:
    vae = _vae()
    sheet = pictures.reconstructions(vae, images[:36])
    assert sheet.row_labels == ("input", "output") * 3
    assert np.array_equal(sheet.tiles[::2].reshape(36, 9, 6, 1), images[:36])
    assert _equal_within_one(sheet.tiles[1::2].reshape(36, 9, 6, 1), _decoded(vae, _mu(vae, images[:36])))


def test_a_model_of_binarised_pictures_has_them_as_its_inputs(images: np.ndarray) -> None:
    sheet = pictures.reconstructions(_vae(likelihood="bernoulli", sigma=None), images[:36])
    assert np.array_equal(sheet.tiles[::2].reshape(36, 9, 6, 1), np.where(images[:36] >= 128, 255, 0))
    assert "white from 128" in sheet.note


def test_samples_are_the_same_every_time_and_not_one_picture() -> None:
    vae = _vae()
    first, again = pictures.samples(vae).tiles, pictures.samples(vae).tiles
    assert np.array_equal(first, again)
    assert len(np.unique(first.reshape(-1, 54), axis=0)) > 10


def test_a_path_goes_straight_from_one_test_picture_to_another(images: np.ndarray) -> None:
    vae = _vae()
    sheet = pictures.interpolations(vae, images[:16])
    assert sheet.column_labels[1:4] == ("α = 0", "0.1", "0.2")
    assert np.array_equal(sheet.tiles[:, 0], images[:8])
    assert np.array_equal(sheet.tiles[:, -1], images[8:16])
    mu = _mu(vae, images[:16])
    assert _equal_within_one(sheet.tiles[:, 1], _decoded(vae, mu[:8]))
    assert _equal_within_one(sheet.tiles[:, 4], _decoded(vae, 0.7 * mu[:8] + 0.3 * mu[8:]))
    assert _equal_within_one(sheet.tiles[:, -2], _decoded(vae, mu[8:]))


def test_traversals_are_ordered_by_kl_and_move_one_latent(images: np.ndarray) -> None:
    vae = _vae()
    mu = _mu(vae, images)
    sheet = pictures.traversals(vae, mu, kl=np.array(KL))
    assert sheet.row_labels == ["z1 · 2.00 nats", "z0 · 0.50 nats", "z2 · 0.00 nats"]
    assert (sheet.column_labels[0], sheet.column_labels[6], sheet.column_labels[-1]) == ("−3", "0", "3")
    central = mu[torch.linalg.vector_norm(mu - mu.mean(0), dim=1).argmin()]
    z = central.repeat(3, 1)
    z[:, 1] = torch.tensor([-3.0, 0.0, 3.0])
    assert _equal_within_one(sheet.tiles[0, [0, 6, 12]], _decoded(vae, z))


def test_at_most_sixteen_latents_are_traversed_and_the_sheet_says_so(images: np.ndarray) -> None:
    vae = _vae(latent_dim=20)
    sheet = pictures.traversals(vae, _mu(vae, images), kl=np.arange(20.0))
    assert len(sheet.tiles) == 16
    assert sheet.row_labels[0] == "z19 · 19.00 nats"
    assert "The 4 less active ones are left out" in sheet.note


def test_without_kl_latents_rank_by_variance_and_move_by_their_standard_deviation(images: np.ndarray) -> None:
    vae = _vae(family="autoencoder")
    mu = _mu(vae, images)
    sheet = pictures.traversals(vae, mu, kl=None)
    dims = np.argsort(-mu.numpy().var(0)).tolist()
    assert [label.split(" ")[0] for label in sheet.row_labels] == [f"z{dim}" for dim in dims]
    central = mu[torch.linalg.vector_norm(mu - mu.mean(0), dim=1).argmin()].clone()
    central[dims[0]] = mu[:, dims[0]].mean() + 3 * mu[:, dims[0]].std(correction=0)
    assert _equal_within_one(sheet.tiles[0, -1:], _decoded(vae, central[None]))


def test_nearest_pairs_come_first_with_their_distances(images: np.ndarray) -> None:
    distances = np.array([0.5, 0.25, 4.0, 123.4])
    sheet = pictures.neighbours(Nearest(samples=images[:4], training=images[4:8], distances=distances))
    assert np.array_equal(sheet.tiles[0], images[[1, 0, 2, 3]])
    assert np.array_equal(sheet.tiles[1], images[[5, 4, 6, 7]])
    assert sheet.captions == [["0.250", "0.500", "4.00", "123"]]


def test_all_pictures_are_written_and_those_without_input_are_left_out(tmp_path: Path, images: np.ndarray) -> None:
    vae = _vae()
    line = {"step": 1, "epoch": 1.0, "elbo": -1.0, "recon": 1.0, "kl": 0.0, "beta": 1.0, "learning_rate": 0.1}
    extras = {
        "history": [line],
        "labels": np.arange(40) % 3,
        "fitted_z": torch.zeros(5, 3),
        "nearest": Nearest(samples=images, training=images, distances=np.ones(40)),
    }
    assert pictures.write_all(tmp_path, vae, images, metrics=METRICS, **extras) == list(pictures.NAMES)
    assert {file.name for file in tmp_path.iterdir()} == {f"{name}.png" for name in pictures.NAMES}
    # Another evaluation without these inputs leaves nothing of the first behind.
    few = pictures.write_all(tmp_path, vae, images, metrics={})
    assert few == ["reconstructions", "samples", "interpolations", "traversals", "posterior"]
    assert {file.name for file in tmp_path.iterdir()} == {f"{name}.png" for name in few}


def test_an_autoencoder_has_no_prior_samples_and_no_kl(tmp_path: Path, images: np.ndarray) -> None:
    names = pictures.write_all(tmp_path, _vae(family="autoencoder"), images, metrics={"kl_per_dimension": [0.0] * 3})
    assert names == ["reconstructions", "interpolations", "traversals", "posterior"]


@pytest.mark.parametrize("n", [1, 2, 7])
def test_few_test_pictures_and_one_latent_are_enough(tmp_path: Path, images: np.ndarray, n: int) -> None:
    names = pictures.write_all(tmp_path, _vae(latent_dim=1), images[:n], metrics={"kl_per_dimension": [1.0]})
    assert names == ["reconstructions", "samples", "interpolations", "traversals", "kl_spectrum"]


def test_importing_pictures_does_not_load_matplotlib_and_charts_do_without_pyplot() -> None:
    code = (
        "import sys, model.report.pictures; assert 'matplotlib' not in sys.modules;"
        "import model.report.plots; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
