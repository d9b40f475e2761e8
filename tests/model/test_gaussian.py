"""The posterior's formulas against torch.distributions, finite differences and integration."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Independent, Normal, kl_divergence

from model.gaussian import DiagonalGaussian

numbers = st.floats(-20, 20, width=32)


@pytest.fixture
def posterior() -> DiagonalGaussian:
    generator = torch.Generator().manual_seed(0)
    shape = (5, 2, 3)
    mu, logvar = (torch.randn(shape, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    return DiagonalGaussian(mu, logvar)


def reference(posterior: DiagonalGaussian) -> Independent:
    return Independent(Normal(posterior.mu, torch.exp(posterior.logvar / 2)), posterior.mu.ndim - 1)


def test_kl_is_that_of_torch_distributions(posterior: DiagonalGaussian) -> None:
    prior = Independent(Normal(torch.zeros_like(posterior.mu), 1.0), 2)
    torch.testing.assert_close(posterior.kl(), kl_divergence(reference(posterior), prior))
    assert posterior.kl().shape == (5,)


def test_kl_is_the_integral_of_its_definition() -> None:
    posterior = DiagonalGaussian(torch.tensor([[0.7]]), torch.tensor([[-1.2]]))
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    q = Normal(torch.tensor(0.7, dtype=torch.float64), math.exp(-0.6)).log_prob(z)
    p = Normal(torch.tensor(0.0, dtype=torch.float64), 1.0).log_prob(z)
    integral = torch.trapezoid(q.exp() * (q - p), z)
    assert posterior.kl().item() == pytest.approx(integral.item(), abs=1e-6)


def test_kl_per_dimension_sums_to_kl(posterior: DiagonalGaussian) -> None:
    assert posterior.kl_per_dimension().shape == posterior.mu.shape
    torch.testing.assert_close(posterior.kl_per_dimension().sum((1, 2)), posterior.kl())


def test_log_prob_is_that_of_torch_distributions(posterior: DiagonalGaussian) -> None:
    z = posterior.mu + 1
    torch.testing.assert_close(posterior.log_prob(z), reference(posterior).log_prob(z))


def test_log_prob_is_a_density() -> None:
    z = torch.linspace(-30, 30, 100_001, dtype=torch.float64)[:, None]
    mu, logvar = torch.full_like(z, -0.4), torch.full_like(z, 1.3)
    density = DiagonalGaussian(mu, logvar).log_prob(z).exp()
    assert torch.trapezoid(density, z[:, 0]).item() == pytest.approx(1, abs=1e-9)


def test_a_sample_is_mean_and_standard_deviation_times_noise() -> None:
    posterior = DiagonalGaussian(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, math.log(9.0)]]))
    torch.testing.assert_close(posterior.sample(torch.tensor([[0.5, -1.0]])), torch.tensor([[1.5, -5.0]]))


def test_gradients_through_a_sample_and_the_kl_are_the_finite_differences() -> None:
    mu, logvar, eps = (
        torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in range(3)
    )

    def loss(mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
        posterior = DiagonalGaussian(mu, logvar)
        return posterior.kl().sum() + posterior.sample(eps).sin().sum()

    assert torch.autograd.gradcheck(loss, (mu.requires_grad_(), logvar.requires_grad_()))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(numbers, st.floats(-15, 15, width=32)), min_size=1, max_size=8))
def test_kl_is_never_below_zero(rows: list[tuple[float, float]]) -> None:
    mu, logvar = torch.tensor(rows).T[..., None]
    posterior = DiagonalGaussian(mu, logvar)
    assert (posterior.kl() >= 0).all()
    assert (posterior.kl_per_dimension() >= 0).all()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-(2.0**-6), 2.0**-6, width=32), min_size=1, max_size=16))
def test_kl_is_never_below_zero_beside_the_prior(logvars: list[float]) -> None:
    logvar = torch.tensor(logvars)[:, None]
    assert (DiagonalGaussian(torch.zeros_like(logvar), logvar).kl() >= 0).all()


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("logvar", DiagonalGaussian),
        ("eps", lambda mu, other: DiagonalGaussian(mu, mu).sample(other)),
        ("z", lambda mu, other: DiagonalGaussian(mu, mu).log_prob(other)),
    ],
)
def test_shapes_that_differ_are_refused_with_got_and_expected(
    name: str, call: Callable[[torch.Tensor, torch.Tensor], object]
) -> None:
    with pytest.raises(ValueError, match=rf"{name}: got shape \(2, 4\), expected that of mu, \(2, 3\)"):
        call(torch.zeros(2, 3), torch.zeros(2, 4))
