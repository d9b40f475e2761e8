"""Many pictures and latents: in batches as at once, few of large ones at a time, and no gradient is kept."""

import numpy as np
import pytest
import torch

from model import parts
from model.gaussian import DiagonalGaussian, Point
from model.inference import decode, decode_images, decoded_parts, encode, pixel_parts
from model.pixels import pixels, to_image
from model.vae import VAE, ModelConfig

CONFIG = ModelConfig(9, 6, 1, latent_dim=3, features=4)
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 9, 6, 1), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _three_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_VALUES_AT_ONCE", 3 * 9 * 6)


def test_posteriors_are_those_of_all_pictures_at_once() -> None:
    vae = VAE(CONFIG)
    found, expected = encode(vae, IMAGES), vae.encode(pixels(IMAGES))
    assert isinstance(found, DiagonalGaussian)
    assert isinstance(expected, DiagonalGaussian)
    torch.testing.assert_close(found.mu, expected.mu)
    torch.testing.assert_close(found.logvar, expected.logvar)
    assert not found.mu.requires_grad


def test_an_autoencoders_are_points() -> None:
    assert isinstance(encode(VAE(ModelConfig(9, 6, 1, latent_dim=3, features=4, family="autoencoder")), IMAGES), Point)


def test_grey_pictures_of_a_bernoulli_are_thresholded_as_where_they_are_served() -> None:
    vae = VAE(ModelConfig(9, 6, 1, latent_dim=3, features=4, likelihood="bernoulli", sigma=None))
    black_and_white = np.where(IMAGES < 128, 0, 255).astype(np.uint8)
    torch.testing.assert_close(encode(vae, IMAGES).mu, vae.encode(pixels(black_and_white)).mu)


def test_means_come_in_parts_together_and_as_pictures() -> None:
    vae, z = VAE(CONFIG), torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    x_hat = decode(vae, z)
    torch.testing.assert_close(x_hat, vae.decode(z))
    assert [len(part) for part in decoded_parts(vae, z)] == [3, 3, 1]
    np.testing.assert_array_equal(decode_images(vae, z), to_image(x_hat).numpy())
    assert not x_hat.requires_grad


def test_pictures_come_a_few_at_a_time() -> None:
    assert [len(part) for part in pixel_parts(IMAGES)] == [3, 3, 1]
    torch.testing.assert_close(torch.cat(list(pixel_parts(IMAGES))), pixels(IMAGES))
