"""Figures against a hand-worked case, and their independence of batches."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from model import evaluation
from model.evaluation import evaluate
from model.pictures import to_uint8, write_all
from model.vae import VAE, ModelConfig


@pytest.fixture
def constant() -> VAE:
    """mu = (1, 0), logvar = (0, ln 4) and x_hat = 1/2, whatever the picture."""
    vae = VAE(ModelConfig(2, 3, 1, latent_dim=2, channels_base=2, sigma=0.5)).eval()
    with torch.no_grad():
        for weight in vae.parameters():
            weight.zero_()
        vae.encoder.mu.bias.copy_(torch.tensor([1.0, 0.0]))
        vae.encoder.logvar.bias.copy_(torch.tensor([0.0, math.log(4.0)]))
    return vae


def test_the_figures_are_those_worked_by_hand(constant: VAE) -> None:
    images = np.stack([np.zeros((2, 3, 1), np.uint8), np.full((2, 3, 1), 255, np.uint8)])
    found = evaluate(constant, images, data="two", draws=3, seed=5)
    # Six pixels, each half a unit, that is one sigma, from their mean.
    recon = 6 * (0.5 + 0.5 * math.log(2 * math.pi * 0.25))
    kl = [0.5, 0.5 * (4 - 1 - math.log(4))]
    assert found["recon"] == pytest.approx(recon)
    assert found["kl_per_dimension"] == pytest.approx(kl)
    assert found["kl"] == pytest.approx(sum(kl))
    assert found["elbo"] == pytest.approx(-recon - sum(kl))
    assert found["mse"] == pytest.approx(0.25)
    assert found["psnr"] == pytest.approx(10 * math.log10(4))
    assert found["active_units"] == 0
    assert found["mu"] == {"min": [1.0, 0.0], "max": [1.0, 0.0], "mean": [1.0, 0.0], "variance": [0.0, 0.0]}
    assert found["protocol"]["images"] == 2
    assert found["protocol"]["draws"] == 3
    assert found["protocol"]["seed"] == 5
    assert found["protocol"]["data"] == "two"


def test_a_dimension_that_follows_the_picture_is_active(constant: VAE) -> None:
    with torch.no_grad():
        constant.encoder.down[0].weight[0, 0, 1, 1] = 1.0
        constant.encoder.bottom.weight[0, 0, 1, 1] = 1.0
        constant.encoder.mu.weight[0, 0] = 3.0
    black, white = np.zeros((2, 3, 1), np.uint8), np.full((2, 3, 1), 255, np.uint8)
    found = evaluate(constant, np.stack([black, white]), data="two")
    assert found["active_units"] == 1
    assert found["mu"]["max"] == [4.0, 0.0]
    assert found["mu"]["variance"] == pytest.approx([2.25, 0.0])


def test_figures_are_repeatable_plain_json_and_free_of_the_batch_size(
    vae: VAE, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = evaluate(vae, images, data="blocks", seed=1)
    assert json.loads(json.dumps(found)) == found == evaluate(vae, images, data="blocks", seed=1)
    assert evaluate(vae, images, data="blocks", seed=2)["recon"] != found["recon"]
    monkeypatch.setattr(evaluation, "_BATCH_SIZE", 7)
    batched = evaluate(vae, images, data="blocks", seed=1)
    assert batched["mse"] == pytest.approx(found["mse"], rel=1e-5)
    assert batched["kl"] == pytest.approx(found["kl"], rel=1e-5)


def test_binarised_pictures_are_evaluated_at_their_threshold() -> None:
    model = ModelConfig(8, 8, 1, channels_base=2, likelihood="bernoulli", sigma=None)
    vae = VAE(model).eval()
    grey = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    binary = np.where(grey >= 128, 255, 0).astype(np.uint8)
    assert evaluate(vae, grey, data="a") == evaluate(vae, binary, data="a")
    assert evaluate(vae, grey, data="a")["protocol"]["binarised"] == "at 128 of 255"


@pytest.mark.parametrize("n", [1, 5, 40])
def test_pictures_are_drawn_from_any_number_of_images(tmp_path: Path, vae: VAE, images: np.ndarray, n: int) -> None:
    write_all(tmp_path / "pictures", vae, images[:n])
    names = sorted(file.name for file in (tmp_path / "pictures").iterdir())
    assert names == ["interpolations.png", "reconstructions.png", "samples.png"]


def test_means_become_the_nearest_grey_level() -> None:
    x = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0]).reshape(1, 1, 2, 2)
    assert to_uint8(x).ravel().tolist() == [0, 0, 1, 255]
