"""Samples among real pictures: the better prior is kept, copies are seen, few pictures say nothing."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from model import prior
from model.coverage import CopyCheck, Neighbours
from model.generation import generate
from model.vae import VAE, ModelConfig


class Ramp(torch.nn.Module):
    """A decoder whose pictures are as bright as z's first number says, black far below 0 and white far above."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z[:, :1].reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4) * self.slope


class Brightness(torch.nn.Module):
    """An encoder that finds two kinds of pictures, dark and light, at -1.5 and 1.5, and knows them well."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kind = torch.sign(x.mean((1, 2, 3)) - 0.5)
        return torch.stack([1.5 * kind, 0 * kind, -4 + 0 * kind, 0 * kind], dim=1)


@pytest.fixture
def two_kinds() -> VAE:
    vae = VAE(ModelConfig(4, 4, 1, latent_dim=2, features=2)).eval()
    vae.encoder, vae.decoder = Brightness(), Ramp()
    return vae


def pictures(n: int, *, seed: int) -> np.ndarray:
    """Dark and light pictures as the decoder makes them of z about -1.5 and 1.5: (n, 4, 4, 1)."""
    generator = np.random.default_rng(seed)
    z = 1.5 * generator.choice([-1, 1], n) + np.exp(-2) * generator.standard_normal(n)
    grey = np.round(255 / (1 + np.exp(-3 * z))).astype(np.uint8)
    return grey[:, None, None, None].repeat(4, 1).repeat(4, 2)


def test_a_fitted_prior_that_knows_of_two_kinds_is_better_than_one_lump_and_is_kept(two_kinds: VAE) -> None:
    found = generate(two_kinds, training=pictures(600, seed=0), test=pictures(200, seed=1), seed=0)
    assert found is not None
    assert found.fitted is not None
    assert found.metrics["rejected"] is None
    assert found.metrics["fitted"]["density"] > found.metrics["standard"]["density"]
    assert found.metrics["fitted"]["components"] == len(found.fitted.weights) > 1
    assert json.loads(json.dumps(found.metrics)) == found.metrics


def test_a_fitted_prior_that_is_no_better_is_measured_and_left(vae: VAE, images: np.ndarray) -> None:
    found = generate(vae, training=images, test=images[:20], seed=0)
    assert found is not None
    assert found.fitted is None
    assert found.metrics["fitted"] is None
    assert found.metrics["rejected"]["components"] == 1


def test_an_autoencoder_keeps_the_fitted_prior_as_it_has_no_other(vae: VAE, images: np.ndarray) -> None:
    autoencoder = VAE(dataclasses.replace(vae.config, family="autoencoder")).eval()
    found = generate(autoencoder, training=images, test=images[:20], seed=0)
    assert found is not None
    assert found.fitted is not None
    assert found.metrics["rejected"] is None
    assert "neighbour_distance" in found.metrics["fitted"]


def test_of_a_sorted_test_part_pictures_are_chosen_by_lot(two_kinds: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prior, "PICTURES_MAX", 20)
    monkeypatch.setattr(prior, "DRAWS_MAX", 60)
    ordered = np.sort(pictures(600, seed=0), axis=0)  # the dark ones first
    chosen, drawn = [], []
    compare, fit = prior.compare, prior.fit

    def compared(fitted: prior.FittedPrior, *, held_out: np.ndarray, **others: Any) -> prior.Comparison:
        chosen.append(held_out)
        return compare(fitted, held_out=held_out, **others)

    def fitted(z: torch.Tensor, *, seed: int) -> prior.FittedPrior:
        drawn.append(z)
        return fit(z, seed=seed)

    monkeypatch.setattr(prior, "compare", compared)
    monkeypatch.setattr(prior, "fit", fitted)
    generate(two_kinds, training=ordered, test=ordered[100:500], seed=0)
    assert (len(chosen[0]), len(drawn[0])) == (20, 60)
    assert 0.2 < (chosen[0] < 128).mean() < 0.8
    assert 0.2 < (drawn[0][:, 0] < 0).float().mean() < 0.8


def test_samples_are_shown_beside_the_training_pictures_nearest_to_them(two_kinds: VAE) -> None:
    training = pictures(600, seed=0)
    found = generate(two_kinds, training=training, test=pictures(200, seed=1), seed=0)
    assert found is not None
    difference = found.nearest.samples.astype(float) - found.nearest.training
    expected = np.sqrt(np.square(difference / 255).sum((1, 2, 3)))
    np.testing.assert_allclose(found.nearest.distances, expected)
    assert np.median(expected) == pytest.approx(found.metrics["standard"]["neighbour_distance"])


def test_a_decoder_that_gives_away_some_training_pictures_is_noticed(
    vae: VAE, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its samples nine in ten are as far from them as ever, so that the median tells nothing."""
    nearest = np.zeros(1000, np.int64)
    samples = Neighbours(np.where(np.arange(1000) < 100, 0.0, 5.0), nearest)
    held_out = Neighbours(np.linspace(4, 6, 1000), nearest)
    monkeypatch.setattr("model.generation.check_copies", lambda *_, **__: CopyCheck(samples=samples, held_out=held_out))
    found = generate(vae, training=images[:30], test=images[30:], seed=0)
    assert found is not None
    figures = found.metrics["standard"]
    assert (figures["neighbour_distance"], figures["test_neighbour_distance"]) == (5, pytest.approx(5))
    assert figures["near_training"] == 0.1


def test_too_few_latents_to_fit_leave_a_reason_and_the_figures_of_the_standard_prior(
    vae: VAE, images: np.ndarray
) -> None:
    found = generate(vae, training=images[:4], test=images, seed=0)
    assert found is not None
    assert "got 4 draws of z" in found.metrics["not_fitted"]
    assert 0 <= found.metrics["standard"]["coverage"] <= 1


def test_too_few_test_pictures_to_lie_among_say_nothing(vae: VAE, images: np.ndarray) -> None:
    assert generate(vae, training=images, test=images[:5], seed=0) is None


def test_copies_of_an_autoencoder_are_looked_for_among_the_samples_that_are_served(two_kinds: VAE) -> None:
    autoencoder = VAE(ModelConfig(4, 4, 1, latent_dim=2, features=2, family="autoencoder")).eval()

    class Codes(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            code = torch.logit(x.mean((1, 2, 3)).clamp(0.001, 0.999)) / 3
            return torch.stack([code, x.std((1, 2, 3)) + 0.1 * torch.sin(100 * code)], dim=1)

    autoencoder.encoder, autoencoder.decoder = Codes(), Ramp()
    found = generate(autoencoder, training=pictures(600, seed=0), test=pictures(200, seed=1), seed=0)
    assert found is not None
    assert found.fitted is not None
    assert "neighbour_distance" in found.metrics["fitted"]
    assert "neighbour_distance" not in found.metrics["standard"]
