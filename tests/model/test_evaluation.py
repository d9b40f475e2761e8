"""Figures against a hand-worked case, their protocol, and their independence of batches."""

import json
import math

import numpy as np
import pytest
import torch

from model import evaluation
from model.evaluation import bits_per_dimension, evaluate
from model.parts import rows_at_once
from model.vae import VAE, ModelConfig


@pytest.fixture
def constant() -> VAE:
    """mu = (1, 0), logvar = (0, ln 4) and x_hat = 1/2, whatever the picture."""
    vae = VAE(ModelConfig(2, 3, 1, latent_dim=2, features=2, sigma=0.5)).eval()
    with torch.no_grad():
        for weight in vae.parameters():
            weight.zero_()
        vae.encoder.head.bias.copy_(torch.tensor([1.0, 0.0, 0.0, math.log(4.0)]))
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
    assert found["bpd"] is None  # a density over pictures that are not dequantised
    assert found["mse"] == pytest.approx(0.25)
    assert found["psnr"] == pytest.approx(10 * math.log10(4))
    assert found["active_units"] == 0
    assert found["mu"] == {"min": [1.0, 0.0], "max": [1.0, 0.0], "mean": [1.0, 0.0], "variance": [0.0, 0.0]}
    assert found["aggregate"]["mean"] == [1.0, 0.0]
    assert found["aggregate"]["variance"] == pytest.approx([1.0, 4.0])
    assert found["aggregate"]["logvar_at_clamp"] == 0
    assert found["protocol"] | {"images": 2, "draws": 3, "seed": 5, "data": "two"} == found["protocol"]


def test_a_dimension_that_follows_the_picture_is_active(constant: VAE) -> None:
    with torch.no_grad():
        constant.encoder.down[0].weight[0, 0, 1, 1] = 1.0
        constant.encoder.bottom.weight[0, 0, 1, 1] = 1.0
        constant.encoder.head.weight[0, 0] = 3.0
    black, white = np.zeros((2, 3, 1), np.uint8), np.full((2, 3, 1), 255, np.uint8)
    found = evaluate(constant, np.stack([black, white]), data="two")
    assert found["active_units"] == 1
    assert found["mu"]["max"] == [4.0, 0.0]
    assert found["mu"]["variance"] == pytest.approx([2.25, 0.0])


@pytest.mark.parametrize(("difference", "n_active"), [(0.205, 1), (0.195, 0)])
def test_a_dimension_is_active_where_mu_has_a_variance_above_a_hundredth(
    constant: VAE, difference: float, n_active: int
) -> None:
    with torch.no_grad():
        constant.encoder.down[0].weight[0, 0, 1, 1] = 1.0
        constant.encoder.bottom.weight[0, 0, 1, 1] = 1.0
        constant.encoder.head.weight[0, 0] = difference
    black, white = np.zeros((2, 3, 1), np.uint8), np.full((2, 3, 1), 255, np.uint8)
    found = evaluate(constant, np.stack([black, white]), data="two")
    assert found["mu"]["variance"] == pytest.approx([difference**2 / 4, 0.0], rel=1e-4)
    assert found["active_units"] == n_active


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


def test_the_bound_is_taken_on_fresh_binarisations_and_latents_on_thresholded_pictures() -> None:
    vae = VAE(ModelConfig(8, 8, 1, features=2, likelihood="bernoulli", sigma=None)).eval()
    grey = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    binary = np.where(grey >= 128, 255, 0).astype(np.uint8)
    of_grey, of_binary = (evaluate(vae, images, data="a") for images in (grey, binary))
    assert of_grey["recon"] != of_binary["recon"]
    assert [of_grey[name] for name in ("mu", "mse", "ssim")] == [of_binary[name] for name in ("mu", "mse", "ssim")]
    assert of_grey["protocol"]["bound_on"] == "fresh binarisations"
    assert of_grey["protocol"]["latents_and_reconstructions_of"] == "binarised at 128 of 255"


def test_the_aggregate_is_of_draws_from_the_posteriors_and_not_of_their_means(constant: VAE) -> None:
    constant.encoder.head.bias.data.zero_()  # each posterior is the prior
    aggregate = evaluate(constant, np.zeros((300, 2, 3, 1), np.uint8), data="zeros")["aggregate"]
    assert abs(aggregate["mmd"]) < 4 * aggregate["mmd_spread"]
    assert aggregate["variance"] == pytest.approx([1, 1])


@pytest.mark.parametrize(("raw", "share"), [((-9.0, 0.0), 0.5), ((0.0, 9.0), 0.5), ((-9.0, 9.0), 1), ((0.1, -0.1), 0)])
def test_the_share_at_the_clamp_counts_both_its_ends(raw: tuple[float, float], share: float) -> None:
    vae = VAE(ModelConfig(2, 3, 1, latent_dim=2, features=2, logvar_range=(-1.0, 1.0))).eval()
    for weight in vae.parameters():
        weight.data.zero_()
    vae.encoder.head.bias.data.copy_(torch.tensor([0.0, 0.0, *raw]))
    found = evaluate(vae, np.zeros((4, 2, 3, 1), np.uint8), data="zeros")
    assert found["aggregate"]["logvar_at_clamp"] == share


def test_an_autoencoder_has_no_bound(images: np.ndarray) -> None:
    found = evaluate(VAE(ModelConfig(9, 6, 1, features=4, family="autoencoder")).eval(), images, data="blocks")
    assert [found[name] for name in ("elbo", "kl", "kl_per_dimension", "bpd")] == [None] * 4
    assert found["aggregate"]["mmd"] is None
    assert math.isfinite(found["recon"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"likelihood": "bernoulli", "sigma": None}, 1.0),  # a mass
        ({"likelihood": "logistic", "sigma": None}, 1.0),
        ({"dequantised": True}, 9.0),  # a density over 256 intervals of width 1/256: 8 bits more
        ({"likelihood": "continuous_bernoulli", "sigma": None, "dequantised": True}, 9.0),
        ({}, None),
        ({"likelihood": "continuous_bernoulli", "sigma": None}, None),
    ],
)
def test_bits_per_dimension_are_given_where_the_bound_is_one_of_a_mass(
    options: dict[str, object], expected: float | None
) -> None:
    config = ModelConfig(2, 5, 3, **options)
    found = bits_per_dimension(-30 * math.log(2), config=config, likelihood=VAE(config).likelihood)
    assert found == (None if expected is None else pytest.approx(expected))


def test_a_uniform_mass_over_256_levels_has_8_bits_also_as_a_dequantised_density() -> None:
    """The same statement in both forms: a flat density of 1 on [0, 1] is 1/256 on each level."""
    config = ModelConfig(4, 4, 1, features=2, likelihood="continuous_bernoulli", sigma=None, dequantised=True)
    vae = VAE(config).eval()
    with torch.no_grad():
        for weight in vae.parameters():
            weight.zero_()  # logits 0 are a uniform density, and the posterior is the prior
    found = evaluate(vae, np.random.default_rng(0).integers(0, 256, (9, 4, 4, 1), np.uint8), data="a")
    assert found["bpd"] == pytest.approx(8, abs=1e-5)


def test_fewer_large_pictures_are_looked_at_together() -> None:
    assert rows_at_once((28, 28, 1), most=500) == 500
    assert rows_at_once((256, 256, 3), most=500) == 21
    assert rows_at_once((4096, 4096, 3), most=500) == 1
