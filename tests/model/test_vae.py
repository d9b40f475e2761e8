"""Networks and the VAE around them: any picture, any batch, a clamped posterior."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import BadSetting
from model.likelihoods import Bernoulli, Gaussian
from model.networks import pyramid
from model.vae import VAE, ModelConfig

SHAPES = [(28, 28, 1), (32, 32, 3), (65, 47, 3), (8, 8, 1), (1, 1, 1), (5, 90, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_any_picture_becomes_a_posterior_and_a_picture_of_its_shape(
    shape: tuple[int, int, int], likelihood: str
) -> None:
    height, width, channels = shape
    sigma = None if likelihood == "bernoulli" else 0.2
    vae = VAE(ModelConfig(height, width, channels, latent_dim=5, channels_base=8, likelihood=likelihood, sigma=sigma))
    x = torch.rand(3, channels, height, width)
    posterior = vae.encode(x)
    assert posterior.mu.shape == posterior.logvar.shape == (3, 5)
    x_hat = vae.decode(posterior.mu)
    assert x_hat.shape == x.shape
    assert x_hat.min() >= 0
    assert x_hat.max() <= 1
    vae.likelihood.recon(vae.logits(posterior.mu), x).sum().backward()
    assert all(weight.grad is not None for name, weight in vae.named_parameters() if "logvar" not in name)


@given(st.integers(1, 300), st.integers(1, 300))
def test_each_size_of_the_pyramid_is_the_half_of_the_one_before_rounded_up(height: int, width: int) -> None:
    sizes = pyramid(height, width)
    assert sizes[0] == (height, width)
    assert min(sizes[-1]) <= 4
    for (tall, wide), (low, narrow) in itertools.pairwise(sizes):
        assert (low, narrow) == ((tall + 1) // 2, (wide + 1) // 2)


def test_a_row_does_not_depend_on_its_neighbours(vae: VAE) -> None:
    x = torch.rand(7, 1, 9, 6, generator=torch.Generator().manual_seed(0))
    together, alone = vae.encode(x), vae.encode(x[3:4])
    torch.testing.assert_close(together.mu[3:4], alone.mu)
    torch.testing.assert_close(together.logvar[3:4], alone.logvar)
    torch.testing.assert_close(vae.decode(together.mu)[3:4], vae.decode(alone.mu))


def test_the_untrained_posterior_is_near_the_prior() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kl = VAE(ModelConfig(28, 28, 1)).encode(torch.rand(16, 1, 28, 28)).kl()
    assert kl.mean() < 16  # one nat per dimension


def test_logvar_is_clamped_to_the_range_of_the_config() -> None:
    vae = VAE(ModelConfig(8, 8, 1, channels_base=4, latent_dim=2, logvar_range=(-1.0, 0.5)))
    with torch.no_grad():
        vae.encoder.logvar.bias.copy_(torch.tensor([-100.0, 100.0]))
    assert vae.encode(torch.rand(4, 1, 8, 8)).logvar.unique(dim=0).tolist() == [[-1.0, 0.5]]


def test_a_model_of_binarised_pictures_thresholds_grey_ones() -> None:
    vae = VAE(ModelConfig(8, 8, 1, channels_base=4, likelihood="bernoulli", sigma=None))
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(vae.encode(x).mu, vae.encode((x >= 0.5).float()).mu, rtol=0, atol=0)
    assert vae.likelihood == Bernoulli()


def test_the_gaussian_has_the_sigma_of_the_config() -> None:
    assert VAE(ModelConfig(8, 8, 1, sigma=0.3)).likelihood == Gaussian(0.3)


def test_pictures_of_another_shape_are_refused(vae: VAE) -> None:
    with pytest.raises(ValueError, match=r"x: got shape \(2, 1, 9, 7\), expected \(n, 1, 9, 6\)"):
        vae.encode(torch.zeros(2, 1, 9, 7))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"height": 0}, "height: got 0, expected a whole number from 1"),
        ({"latent_dim": 1.5}, "latent_dim: got 1.5, expected a whole number from 1"),
        ({"channels_base": True}, "channels_base: got True"),
        ({"preset": "large"}, "preset: got 'large', expected one of small"),
        ({"likelihood": "poisson"}, "likelihood: got 'poisson', expected one of gaussian, bernoulli"),
        ({"likelihood": "bernoulli"}, "sigma: got 0.3, expected none"),
        ({"sigma": None}, "sigma: got None, expected a number above 0"),
        ({"sigma": float("nan")}, "sigma: got nan"),
        ({"sigma": 0.0}, "sigma: got 0.0"),
        ({"logvar_range": (2.0, 1.0)}, "logvar_range: got"),
        ({"logvar_range": (-100.0, 1.0)}, "logvar_range: got"),
    ],
)
def test_a_setting_out_of_range_is_refused_with_got_and_expected(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadSetting, match=sentence):
        ModelConfig(**{"height": 8, "width": 8, "channels": 1, **options})


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_kl_of_a_network_is_never_below_zero(n: int, seed: int) -> None:
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    assert (VAE(ModelConfig(8, 8, 1, channels_base=4)).encode(x).kl() >= 0).all()
