"""The VAE around its networks: its config, a clamped posterior, the autoencoder beside it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal

from model.errors import BadSetting
from model.gaussian import SCALE_HEADS, DiagonalGaussian, Point, ScaleHead
from model.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretisedLogistic,
    FixedSigma,
    Gaussian,
    LearnedSigma,
    Levels,
    Likelihood,
    OptimalSigma,
)
from model.vae import VAE, ModelConfig

LIKELIHOODS = [
    {"likelihood": "gaussian", "sigma": 0.2},
    {"likelihood": "gaussian", "sigma": "learned"},
    {"likelihood": "gaussian", "sigma": "optimal"},
    {"likelihood": "bernoulli", "sigma": None},
    {"likelihood": "continuous_bernoulli", "sigma": None},
    {"likelihood": "logistic", "sigma": None},
]


def tiny(**options: object) -> VAE:
    return VAE(ModelConfig(**{"height": 9, "width": 6, "channels": 1, "latent_dim": 2, "features": 4, **options}))


@pytest.mark.parametrize("family", ["vae", "autoencoder"])
@pytest.mark.parametrize("options", LIKELIHOODS, ids=lambda options: "-".join(map(str, options.values())))
def test_a_picture_becomes_a_posterior_and_a_picture_again(family: str, options: dict[str, object]) -> None:
    vae = tiny(family=family, **options).eval()
    x = vae.likelihood.settle(torch.rand(3, 1, 9, 6).mul(255).round() / 255)
    z = vae.encode(x).sample(torch.randn(3, 2))
    x_hat = vae.decode(z)
    assert x_hat.shape == x.shape
    assert x_hat.min() >= 0
    assert x_hat.max() <= 1
    assert vae.likelihood.recon(vae.logits(z), x).shape == (3,)


def test_a_vae_gives_a_gaussian_and_an_autoencoder_a_point_from_half_the_outputs() -> None:
    x = torch.rand(4, 1, 9, 6)
    gaussian, point = tiny(), tiny(family="autoencoder")
    assert gaussian.encoder(x).shape == (4, 4)
    assert point.encoder(x).shape == (4, 2)
    posterior = point.encode(x)
    assert isinstance(gaussian.encode(x), DiagonalGaussian)
    assert isinstance(posterior, Point)
    assert torch.equal(posterior.mu, point.encoder(x))


def test_mu_comes_before_the_scale_in_the_encoders_outputs() -> None:
    vae, x = tiny(), torch.rand(4, 1, 9, 6)
    outputs, posterior = vae.encoder(x), vae.encode(x)
    assert torch.equal(posterior.mu, outputs[:, :2])
    assert torch.equal(posterior.logvar, outputs[:, 2:])


def with_scale_outputs(vae: VAE, raw: list[float]) -> VAE:
    """The same encoder, but its two scale outputs are these numbers for every picture."""
    with torch.no_grad():
        vae.encoder.head.weight[2:] = 0
        vae.encoder.head.bias[2:] = torch.tensor(raw)
    return vae


@pytest.mark.parametrize("head", SCALE_HEADS)
def test_every_scale_head_gives_the_same_density_for_the_same_sigma(head: ScaleHead) -> None:
    sigmas = (0.05, 1.7)
    raw = {
        "logvar": [2 * math.log(sigma) for sigma in sigmas],
        "log_sigma": [math.log(sigma) for sigma in sigmas],
        "variance": [math.log(math.expm1(sigma**2)) for sigma in sigmas],
        "sigma": [math.log(math.expm1(sigma)) for sigma in sigmas],
    }[head]
    posterior = with_scale_outputs(tiny(scale_head=head), raw).encode(torch.rand(4, 1, 9, 6))
    z = torch.randn(3, 4, 2)
    expected = Normal(posterior.mu, torch.tensor(sigmas)).log_prob(z).sum(-1)
    torch.testing.assert_close(posterior.log_prob(z), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("head", SCALE_HEADS)
def test_logvar_is_clamped_to_the_range_of_the_config(head: ScaleHead) -> None:
    vae = with_scale_outputs(tiny(scale_head=head, logvar_range=(-1.0, 0.5)), [-100.0, 100.0])
    assert vae.encode(torch.rand(4, 1, 9, 6)).logvar.unique(dim=0).tolist() == [[-1.0, 0.5]]


def test_logits_along_leading_axes_are_those_of_each_slice() -> None:
    vae, z = tiny(), torch.randn(2, 3, 4, 2)
    logits = vae.logits(z)
    assert logits.shape == (2, 3, 4, 1, 9, 6)
    torch.testing.assert_close(logits[1, 2], vae.logits(z[1, 2]))


def test_a_picture_is_the_mean_that_the_likelihood_reads_from_the_logits() -> None:
    vae, z = tiny(likelihood="continuous_bernoulli", sigma=None), torch.randn(4, 2)
    assert torch.equal(vae.decode(z), vae.likelihood.mean(vae.logits(z)))


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, Gaussian),
        ({"likelihood": "bernoulli", "sigma": None}, Bernoulli),
        ({"likelihood": "continuous_bernoulli", "sigma": None}, ContinuousBernoulli),
        ({"likelihood": "logistic", "sigma": None}, DiscretisedLogistic),
    ],
)
def test_the_likelihood_is_that_of_the_config(options: dict[str, object], kind: type[Likelihood]) -> None:
    assert isinstance(tiny(**options).likelihood, kind)


@pytest.mark.parametrize(
    ("sigma", "kind"), [(0.2, FixedSigma), (1, FixedSigma), ("learned", LearnedSigma), ("optimal", OptimalSigma)]
)
def test_the_gaussian_has_the_sigma_of_the_config(sigma: float | str, kind: type[torch.nn.Module]) -> None:
    likelihood = tiny(sigma=sigma).likelihood
    assert isinstance(likelihood, Gaussian)
    assert isinstance(likelihood.sigma, kind)
    if not isinstance(sigma, str):
        assert likelihood.sigma(torch.tensor(0.0)).item() == pytest.approx(sigma**2)


@pytest.mark.parametrize("likelihood", ["gaussian", "continuous_bernoulli"])
@pytest.mark.parametrize("dequantised", [True, False])
def test_a_density_is_dequantised_if_the_config_says_so(likelihood: str, *, dequantised: bool) -> None:
    sigma = 0.1 if likelihood == "gaussian" else None
    vae = tiny(likelihood=likelihood, sigma=sigma, dequantised=dequantised)
    assert vae.likelihood.levels == Levels(dequantised)


@pytest.mark.parametrize("options", LIKELIHOODS, ids=lambda options: "-".join(map(str, options.values())))
def test_a_state_holds_all_that_a_likelihood_has_learned(options: dict[str, object]) -> None:
    trained, fresh = tiny(**options), tiny(**options)
    z, x = torch.randn(3, 2), torch.zeros(3, 1, 9, 6)
    with torch.no_grad():
        trained.train().likelihood.recon(trained.logits(z), x)
        for weight in trained.parameters():
            weight += 0.1
    fresh.load_state_dict(trained.state_dict())
    trained.eval()
    fresh.eval()
    assert torch.equal(trained.likelihood.recon(trained.logits(z), x), fresh.likelihood.recon(fresh.logits(z), x))


@pytest.mark.parametrize("shape", [(2, 1, 9, 7), (2, 3, 9, 6), (1, 9, 6)])
def test_pictures_of_another_shape_are_refused(vae: VAE, shape: tuple[int, ...]) -> None:
    got = ", ".join(map(str, shape))
    with pytest.raises(ValueError, match=rf"x: got shape \({got}\), expected \(n, 1, 9, 6\)"):
        vae.encode(torch.zeros(shape))


def test_the_image_shape_is_that_at_the_edge() -> None:
    assert ModelConfig(9, 6, 3).image_shape == (9, 6, 3)


WHOLE = "expected a whole number from 1"
DENSITIES = "expected it with gaussian and continuous_bernoulli only"
SIGMA = "expected a number from 1/512, learned or optimal with the gaussian likelihood"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"height": 0}, f"height: got 0, {WHOLE}"),
        ({"width": -3}, f"width: got -3, {WHOLE}"),
        ({"channels": "1"}, f"channels: got '1', {WHOLE}"),
        ({"latent_dim": 1.5}, f"latent_dim: got 1.5, {WHOLE}"),
        ({"features": True}, f"features: got True, {WHOLE}"),
        ({"features": False}, f"features: got False, {WHOLE}"),
        ({"features": -1}, f"features: got -1, {WHOLE}"),
        ({"depth": 0.5}, f"depth: got 0.5, {WHOLE}"),
        ({"depth": 2}, "depth: got 2, expected at most 1 with small"),
        ({"preset": "mlp", "depth": 65}, "depth: got 65, expected at most 64 with mlp"),
        ({"preset": "large"}, "preset: got 'large', expected one of small, residual, mlp"),
        ({"family": "gan"}, "family: got 'gan', expected one of vae, autoencoder"),
        ({"scale_head": "std"}, "scale_head: got 'std', expected one of logvar, log_sigma, variance, sigma"),
        (
            {"likelihood": "poisson"},
            "likelihood: got 'poisson', expected one of gaussian, bernoulli, continuous_bernoulli, logistic",
        ),
        ({"likelihood": "bernoulli"}, "sigma: got 0.3, expected none with the bernoulli likelihood"),
        (
            {"likelihood": "logistic", "sigma": "learned"},
            "sigma: got 'learned', expected none with the logistic likelihood",
        ),
        ({"sigma": None}, f"sigma: got None, {SIGMA}"),
        ({"sigma": "free"}, f"sigma: got 'free', {SIGMA}"),
        ({"sigma": float("nan")}, f"sigma: got nan, {SIGMA}"),
        ({"sigma": float("inf")}, f"sigma: got inf, {SIGMA}"),
        ({"sigma": 0.0019}, f"sigma: got 0.0019, {SIGMA}"),
        *(
            (
                {"likelihood": mass, "sigma": None, "dequantised": True},
                f"dequantised: got it with {mass}, {DENSITIES}; {mass} is a mass already",
            )
            for mass in ("bernoulli", "logistic")
        ),
        *(
            ({"logvar_range": bounds}, f"logvar_range: got {bounds}, expected low < high within -80 to 80")
            for bounds in ((2.0, 1.0), (1.0, 1.0), (-100.0, 1.0), (0.0, 90.0), (float("nan"), 1.0))
        ),
    ],
)
def test_a_setting_out_of_range_is_refused_with_got_and_expected(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadSetting) as refused:
        ModelConfig(**{"height": 8, "width": 8, "channels": 1, **options})
    assert str(refused.value) == sentence


def test_the_narrowest_sigma_is_half_a_grey_level() -> None:
    assert ModelConfig(8, 8, 1, sigma=1 / 512).sigma == 1 / 512


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_kl_of_a_network_is_never_below_zero(n: int, seed: int) -> None:
    x = torch.rand(n, 1, 9, 6, generator=torch.Generator().manual_seed(seed))
    assert (tiny().encode(x).kl() >= 0).all()
