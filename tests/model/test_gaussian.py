"""Posteriors and scale heads against torch.distributions, finite differences and integration."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Independent, Normal, kl_divergence

from model.gaussian import SCALE_HEADS, DiagonalGaussian, Point, ScaleHead, standard_log_prob, to_logvar

numbers = st.floats(-20, 20, width=32)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def posterior() -> DiagonalGaussian:
    return DiagonalGaussian(2 * normal(5, 3), 2 * normal(5, 3, seed=1))


def reference(posterior: DiagonalGaussian) -> Independent:
    return Independent(Normal(posterior.mu, torch.exp(posterior.logvar / 2)), 1)


def raw_that_stands_for(sigma: torch.Tensor, head: ScaleHead) -> torch.Tensor:
    """The inverse of each head, written from its definition."""
    return {
        "logvar": 2 * sigma.log(),
        "log_sigma": sigma.log(),
        "variance": sigma.square().expm1().log(),
        "sigma": sigma.expm1().log(),
    }[head]


def test_kl_is_that_of_torch_distributions(posterior: DiagonalGaussian) -> None:
    prior = Independent(Normal(torch.zeros_like(posterior.mu), 1.0), 1)
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
    torch.testing.assert_close(posterior.kl_per_dimension().sum(1), posterior.kl())


def test_log_prob_is_that_of_torch_distributions_for_any_leading_axes(posterior: DiagonalGaussian) -> None:
    for leading in ((), (4,), (2, 4)):
        z = normal(*leading, 5, 3, seed=2)
        log_prob = posterior.log_prob(z)
        assert log_prob.shape == (*leading, 5)
        torch.testing.assert_close(log_prob, reference(posterior).log_prob(z))


def test_log_prob_is_a_density() -> None:
    z = torch.linspace(-30, 30, 100_001, dtype=torch.float64)[:, None]
    mu, logvar = torch.full_like(z, -0.4), torch.full_like(z, 1.3)
    density = DiagonalGaussian(mu, logvar).log_prob(z).exp()
    assert torch.trapezoid(density, z[:, 0]).item() == pytest.approx(1, abs=1e-9)


def test_the_log_density_of_the_prior_is_that_of_torch_distributions() -> None:
    z = normal(2, 4, 5, 3)
    expected = Independent(Normal(torch.zeros(3, dtype=torch.float64), 1.0), 1).log_prob(z)
    torch.testing.assert_close(standard_log_prob(z), expected)


def test_a_sample_is_mean_and_standard_deviation_times_noise() -> None:
    posterior = DiagonalGaussian(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, math.log(9.0)]]))
    torch.testing.assert_close(posterior.sample(torch.tensor([[0.5, -1.0]])), torch.tensor([[1.5, -5.0]]))


def test_samples_along_leading_axes_are_those_of_each_slice(posterior: DiagonalGaussian) -> None:
    eps = normal(2, 4, 5, 3)
    z = posterior.sample(eps)
    assert z.shape == (2, 4, 5, 3)
    for i in range(2):
        for j in range(4):
            assert torch.equal(z[i, j], posterior.sample(eps[i, j]))


def test_samples_have_the_mean_and_the_variance_of_the_posterior() -> None:
    posterior = DiagonalGaussian(torch.tensor([[1.5, -3.0]]), torch.tensor([[0.8, -2.0]]))
    z = posterior.sample(torch.randn(50_000, 1, 2, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(z.mean(0), posterior.mu, rtol=0, atol=0.03)
    torch.testing.assert_close(z.var(0).log(), posterior.logvar, rtol=0, atol=0.03)


def test_gradients_through_a_sample_its_density_and_the_kl_are_the_finite_differences() -> None:
    mu, logvar, eps = (normal(2, 3, seed=seed) for seed in range(3))

    def loss(mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
        posterior = DiagonalGaussian(mu, logvar)
        z = posterior.sample(eps)
        return posterior.kl().sum() + z.sin().sum() + posterior.log_prob(z + 0.3).cos().sum()

    assert torch.autograd.gradcheck(loss, (mu.requires_grad_(), logvar.requires_grad_()))


def test_no_gradient_flows_through_a_detached_posterior(posterior: DiagonalGaussian) -> None:
    moving = DiagonalGaussian(posterior.mu.requires_grad_(), posterior.logvar.requires_grad_())
    still = moving.detach()
    assert torch.equal(still.mu, moving.mu)
    assert torch.equal(still.logvar, moving.logvar)
    assert moving.kl().requires_grad
    assert not still.kl().requires_grad


@settings(max_examples=200, deadline=None)
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


def test_every_draw_from_a_point_is_the_point_and_costs_no_nats() -> None:
    point = Point(normal(5, 3))
    z = point.sample(normal(2, 4, 5, 3))
    assert z.shape == (2, 4, 5, 3)
    assert torch.equal(z[1, 3], point.mu)
    assert torch.equal(point.kl_per_dimension(), torch.zeros_like(point.mu))
    assert torch.equal(point.kl(), torch.zeros(5, dtype=torch.float64))


def test_gradients_reach_a_point_from_all_of_its_draws() -> None:
    mu = normal(5, 3).requires_grad_()
    Point(mu).sample(normal(4, 5, 3)).sum().backward()
    assert torch.equal(mu.grad, torch.full_like(mu, 4.0))


@pytest.mark.parametrize("head", SCALE_HEADS)
def test_every_scale_head_gives_the_same_density_for_the_same_sigma(head: ScaleHead) -> None:
    sigma = torch.logspace(-3, 1.3, 40, dtype=torch.float64)[:, None]
    mu, z = normal(40, 1), normal(40, 1, seed=1)
    posterior = DiagonalGaussian(mu, to_logvar(raw_that_stands_for(sigma, head), head))
    torch.testing.assert_close(posterior.log_prob(z), Normal(mu, sigma).log_prob(z).sum(1))
    torch.testing.assert_close(posterior.sample(z), mu + sigma * z)


@pytest.mark.parametrize("head", SCALE_HEADS)
def test_every_scale_head_gives_the_same_gradient_for_the_same_sigma(head: ScaleHead) -> None:
    sigma = torch.logspace(-3, 1.3, 40, dtype=torch.float64)[:, None].requires_grad_()
    logvar = to_logvar(raw_that_stands_for(sigma, head), head)
    (gradient,) = torch.autograd.grad(logvar.sum(), sigma)
    torch.testing.assert_close(gradient, 2 / sigma)


@pytest.mark.parametrize("head", ["variance", "sigma"])
def test_positive_heads_are_the_softplus_of_the_raw_output_over_its_whole_range(head: ScaleHead) -> None:
    raw = torch.linspace(-200, 200, 40_001)
    # log(1 + e^r) in float64, where e^-200 is still a number; below, softplus is e^r to the last digit.
    exact = torch.where(raw < -30, raw.double(), torch.logaddexp(raw.double(), torch.zeros(())).log())
    expected = exact * (1 if head == "variance" else 2)
    torch.testing.assert_close(to_logvar(raw, head).double(), expected, rtol=1e-6, atol=1e-6)
    assert (to_logvar(raw, head).diff() >= 0).all()


@pytest.mark.parametrize("head", SCALE_HEADS)
def test_gradients_are_finite_for_any_raw_output(head: ScaleHead) -> None:
    raw = torch.linspace(-200, 200, 4001)[:, None].requires_grad_()
    posterior = DiagonalGaussian(torch.ones_like(raw), to_logvar(raw, head).clamp(-15, 15))
    loss = posterior.kl() + posterior.log_prob(posterior.sample(torch.ones_like(raw)).detach())
    (gradient,) = torch.autograd.grad(loss.sum(), raw)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient[raw.abs() < 1].ne(0).all()


@pytest.mark.parametrize("head", SCALE_HEADS)
def test_the_gradient_of_a_scale_head_is_the_finite_difference(head: ScaleHead) -> None:
    raw = torch.tensor([-40.0, -14.9, -3.0, 0.0, 2.0, 30.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: to_logvar(t, head), (raw,))


def test_mu_and_logvar_of_different_shapes_are_refused_with_got_and_expected() -> None:
    with pytest.raises(ValueError, match=r"logvar: got shape \(2, 4\), expected that of mu, \(2, 3\)"):
        DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("eps", lambda mu, other: DiagonalGaussian(mu, mu).sample(other)),
        ("eps", lambda mu, other: Point(mu).sample(other)),
        ("z", lambda mu, other: DiagonalGaussian(mu, mu).log_prob(other)),
    ],
)
@pytest.mark.parametrize("shape", [(2, 4), (1, 3), (3,), (2, 3, 5), (5, 1, 3)])
def test_rows_of_another_shape_are_refused_with_got_and_expected(
    name: str, call: Callable[[torch.Tensor, torch.Tensor], object], shape: tuple[int, ...]
) -> None:
    with pytest.raises(
        ValueError, match=rf"{name}: got shape \({', '.join(map(str, shape))},?\), expected \(…, 2, 3\)"
    ):
        call(torch.zeros(2, 3), torch.zeros(shape))
