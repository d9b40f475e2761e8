"""Likelihoods against torch.distributions, sums and integrals: normalised, in nats, their mean the picture."""

import itertools
import math

import pytest
import torch
from torch.distributions import AffineTransform, Normal, SigmoidTransform, TransformedDistribution, Uniform
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import ContinuousBernoulli as TorchContinuousBernoulli

from model.likelihoods import (
    SIGMA_FLOOR,
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

PLAIN, DEQUANTISED = Levels(dequantised=False), Levels(dequantised=True)
GREY_LEVELS = torch.arange(256, dtype=torch.float64) / 255
# Both sides of every place where a formula changes its form, and far out.
LOGITS = [-60.0, -7.0, -0.5, -0.1001, -0.0999, -1e-3, 0.0, 1e-9, 0.05, 0.0999, 0.1001, 1.3, 9.0, 60.0]


def gaussian(sigma: float | None = None, *, levels: Levels = PLAIN) -> Gaussian:
    return Gaussian(LearnedSigma() if sigma is None else FixedSigma(sigma), levels=levels)


def optimal_in_training() -> Gaussian:
    return Gaussian(OptimalSigma(), levels=PLAIN).train()


def optimal(sigma: float) -> Gaussian:
    """A Gaussian whose running sigma is this one, as after training."""
    likelihood = optimal_in_training()
    likelihood.sigma.running.fill_(sigma**2)
    return likelihood.eval()


def logistic(scale: float | None = None) -> DiscretisedLogistic:
    likelihood = DiscretisedLogistic()
    if scale is not None:
        with torch.no_grad():
            likelihood.log_above_floor.fill_(math.log(scale - SIGMA_FLOOR) if scale > SIGMA_FLOOR else -math.inf)
    return likelihood


EVERY = {
    "bernoulli": Bernoulli(),
    "continuous_bernoulli": ContinuousBernoulli(PLAIN),
    "fixed": gaussian(0.2),
    "learned": gaussian(),
    "optimal": optimal(0.1),
    "logistic": logistic(),
}
every_likelihood = pytest.mark.parametrize("likelihood", EVERY.values(), ids=EVERY.keys())


def single(values: torch.Tensor) -> torch.Tensor:
    """Each value as a picture of one pixel: (n,) -> (n, 1, 1, 1)."""
    return values.reshape(-1, 1, 1, 1)


def log_p(likelihood: Likelihood, logit: float, x: torch.Tensor) -> torch.Tensor:
    """log p of each x as a picture of one pixel under one logit, in float64: (n,) -> (n,)."""
    logits = torch.full_like(x, logit, dtype=torch.float64)
    return -likelihood.recon(single(logits), single(x)).detach()


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(4, 3, 5, 2, dtype=torch.float64) * 3


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# Normalised.


def test_bernoulli_is_a_mass_over_binary_pictures() -> None:
    logits = torch.tensor([[[[0.3, -2.0], [4.0, 1.1]]]])
    pictures = [torch.tensor(bits).reshape(1, 1, 2, 2) for bits in itertools.product((0.0, 1.0), repeat=4)]
    total = sum(math.exp(-Bernoulli().recon(logits, x).item()) for x in pictures)
    assert total == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("scale", [SIGMA_FLOOR, 1 / 255, 0.05, 3.0])
@pytest.mark.parametrize("logit", [-8.0, -2.0, -0.3, 0.0, 1.9, 2.0, 100.0])
def test_the_discretised_logistic_is_a_mass_over_the_grey_levels(logit: float, scale: float) -> None:
    assert log_p(logistic(scale), logit, GREY_LEVELS).exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("logit", LOGITS)
def test_the_continuous_bernoulli_is_a_density_over_black_to_white(logit: float) -> None:
    x = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    density = log_p(ContinuousBernoulli(PLAIN), logit, x).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("likelihood", [gaussian(0.3), gaussian(SIGMA_FLOOR), gaussian(), optimal(0.05)])
def test_the_gaussian_is_a_density(likelihood: Gaussian) -> None:
    x = torch.linspace(-5, 6, 200_001, dtype=torch.float64)
    assert torch.trapezoid(log_p(likelihood, 0.4, x).exp(), x).item() == pytest.approx(1, abs=1e-6)


# Against independent references.


def test_bernoulli_is_that_of_torch_distributions(logits: torch.Tensor) -> None:
    x = (torch.rand(logits.shape) < 0.5).double()
    expected = -TorchBernoulli(logits=logits).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(Bernoulli().recon(logits, x), expected)


def test_the_continuous_bernoulli_is_that_of_torch_distributions(logits: torch.Tensor) -> None:
    x = torch.rand(logits.shape, dtype=torch.float64)
    reference = TorchContinuousBernoulli(logits=logits, lims=(0.4999, 0.5001))
    torch.testing.assert_close(ContinuousBernoulli(PLAIN).recon(logits, x), -reference.log_prob(x).sum((1, 2, 3)))
    torch.testing.assert_close(ContinuousBernoulli(PLAIN).mean(logits), reference.mean, rtol=0, atol=2e-6)


@pytest.mark.parametrize("likelihood", [gaussian(0.2), gaussian(), optimal(0.07)], ids=["fixed", "learned", "optimal"])
def test_the_gaussian_is_that_of_torch_distributions(likelihood: Gaussian, logits: torch.Tensor) -> None:
    x = torch.rand(logits.shape, dtype=torch.float64)
    sigma = likelihood.sigma(torch.tensor(0.0)).sqrt().item()
    expected = -Normal(torch.sigmoid(logits), sigma).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(likelihood.recon(logits, x).detach(), expected, rtol=1e-6, atol=1e-5)


def test_the_learned_sigma_starts_where_the_fixed_one_stands_by_default() -> None:
    assert LearnedSigma()(torch.tensor(0.0)).sqrt().item() == pytest.approx(0.3)


@pytest.mark.parametrize("scale", [0.01, 0.05, 1.0])
def test_the_discretised_logistic_is_the_logistic_of_torch_distributions_over_each_level(scale: float) -> None:
    logits = torch.linspace(-3, 3, 13, dtype=torch.float64)
    location = 0.5 + logits / 4
    reference = TransformedDistribution(
        Uniform(torch.zeros(13, 1, dtype=torch.float64), 1.0, validate_args=False),
        [SigmoidTransform().inv, AffineTransform(location[:, None], scale)],
        validate_args=False,
    )
    edges = (torch.arange(1, 256, dtype=torch.float64) - 0.5) / 255
    below = torch.cat([torch.zeros(13, 1), reference.cdf(edges.expand(13, -1)), torch.ones(13, 1)], dim=1)
    got = torch.stack([log_p(logistic(scale), logit, GREY_LEVELS) for logit in logits.tolist()])
    torch.testing.assert_close(got.exp(), below.diff(), rtol=0, atol=1e-7)


def test_the_outermost_levels_of_the_logistic_reach_to_infinity() -> None:
    for logit, level in ((-40.0, 0.0), (40.0, 1.0)):
        assert log_p(logistic(0.05), logit, torch.tensor([level]).double()).item() == pytest.approx(0, abs=1e-6)


# The continuous Bernoulli about 0, where its formulas divide 0 by 0.


def test_the_normaliser_of_the_continuous_bernoulli_is_exact_on_both_sides_of_its_switch() -> None:
    size = torch.cat([torch.logspace(-4, 0, 400), torch.tensor([0.09999, 0.1, 0.10001])]).double()
    logits = torch.cat([-size, size])
    closed = torch.log(logits / torch.tanh(logits / 2))
    # At x = 1/2, -log p is log(2 cosh(l / 2)) less the logarithm of the normaliser.
    expected = torch.log(2 * torch.cosh(logits / 2)) - closed
    got = ContinuousBernoulli(PLAIN).recon(single(logits), torch.full_like(single(logits), 0.5))
    torch.testing.assert_close(got, expected, rtol=0, atol=5e-9)


def test_the_mean_of_the_continuous_bernoulli_is_exact_on_both_sides_of_its_switch() -> None:
    size = torch.cat([torch.logspace(-3, 0, 400), torch.tensor([0.09999, 0.1, 0.10001])]).double()
    logits = torch.cat([-size, size])
    expected = 0.5 / torch.tanh(logits / 2) + 0.5 - 1 / logits
    grey_levels = 255 * (ContinuousBernoulli(PLAIN).mean(logits) - expected)
    assert grey_levels.abs().max() < 1e-3


def test_a_logit_of_0_is_the_uniform_density_with_a_finite_gradient() -> None:
    logits = torch.zeros(1, 1, 2, 2, requires_grad=True)
    x = torch.tensor([[[[0.0, 0.25], [0.5, 1.0]]]])
    recon = ContinuousBernoulli(PLAIN).recon(logits, x)
    recon.sum().backward()
    assert recon.item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(logits.grad, 0.5 - x)


# Gradients.


@every_likelihood
def test_the_gradient_is_the_finite_difference(likelihood: Likelihood) -> None:
    logits = torch.tensor(LOGITS, dtype=torch.float64)[1:-1].reshape(3, 1, 2, 2).requires_grad_()
    x = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(6).reshape(3, 1, 2, 2)
    assert torch.autograd.gradcheck(lambda t: likelihood.recon(t, x), (logits,))


@pytest.mark.parametrize("likelihood", [gaussian(), logistic()], ids=["learned", "logistic"])
def test_the_gradient_of_a_learned_scale_is_the_finite_difference(likelihood: Gaussian | DiscretisedLogistic) -> None:
    likelihood = likelihood.double()
    logits, x = torch.randn(2, 1, 2, 2, dtype=torch.float64), torch.tensor([0.0, 0.2, 0.4, 1.0]).repeat(2, 1).double()
    (weight,) = likelihood.parameters()
    recon = likelihood.recon(logits, x.reshape(2, 1, 2, 2)).sum()
    (gradient,) = torch.autograd.grad(recon, weight)
    differences = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            weight += step
            differences.append(likelihood.recon(logits, x.reshape(2, 1, 2, 2)).sum().item())
    assert gradient.item() == pytest.approx((differences[0] - differences[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("likelihood", [*EVERY.values(), optimal_in_training()], ids=[*EVERY, "optimal in training"])
def test_loss_and_gradient_are_finite_for_any_logit(likelihood: Likelihood) -> None:
    logits = torch.tensor([-1e4, -300.0, -90.0, -1e-30, 0.0, 90.0, 300.0, 1e4]).reshape(2, 1, 2, 2).requires_grad_()
    for level in (0.0, 1.0):
        recon = likelihood.recon(logits, torch.full_like(logits, level))
        (gradient,) = torch.autograd.grad(recon.sum(), logits)
        assert recon.isfinite().all()
        assert gradient.isfinite().all()


# The decoder's picture is the mean of p(x given z).


@pytest.mark.parametrize("logit", LOGITS)
def test_the_picture_of_the_continuous_bernoulli_is_the_mean_of_its_density(logit: float) -> None:
    likelihood = ContinuousBernoulli(PLAIN)
    x = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    mean = torch.trapezoid(x * log_p(likelihood, logit, x).exp(), x)
    assert likelihood.mean(torch.tensor(logit).double()).item() == pytest.approx(mean.item(), abs=2e-6)


@pytest.mark.parametrize("logit", [-30.0, -2.0, 0.0, 0.7, 30.0])
def test_the_pictures_of_the_bernoulli_and_the_gaussian_are_the_means_of_theirs(logit: float) -> None:
    binary = torch.tensor([0.0, 1.0], dtype=torch.float64)
    mass = log_p(Bernoulli(), logit, binary).exp()
    assert Bernoulli().mean(torch.tensor(logit)).item() == pytest.approx((mass @ binary).item(), abs=1e-6)
    x = torch.linspace(-3, 4, 100_001, dtype=torch.float64)
    mean = torch.trapezoid(x * log_p(gaussian(0.3), logit, x).exp(), x)
    assert gaussian(0.3).mean(torch.tensor(logit)).item() == pytest.approx(mean.item(), abs=1e-6)


def error_of_the_logistic_mean(logits: torch.Tensor, scale: float) -> float:
    """The largest difference of `mean` to the sum over the 256 levels, grey levels."""
    likelihood = logistic(scale)
    rows = logits.reshape(-1, 1, 1, 1, 1).expand(-1, 256, 1, 1, 1)
    mass = torch.exp(-likelihood.recon(rows, single(GREY_LEVELS)))
    return (255 * (likelihood.mean(logits) - mass @ GREY_LEVELS)).abs().max().item()


def test_the_picture_of_the_logistic_is_the_mean_of_its_mass() -> None:
    inside = 4 * (torch.linspace(0.05, 0.95, 2001, dtype=torch.float64) - 0.5)
    for scale in (SIGMA_FLOOR, 1 / 255, 0.01):
        assert error_of_the_logistic_mean(inside, scale) < 1e-3
    anywhere = 4 * (torch.linspace(-1, 2, 3001, dtype=torch.float64) - 0.5)
    for scale in (0.05, 0.3, 2.0):
        assert error_of_the_logistic_mean(anywhere, scale) < 1e-3


def test_beside_black_and_white_the_picture_of_a_narrow_logistic_is_off_by_a_fortieth_of_a_level_at_most() -> None:
    anywhere = 4 * (torch.linspace(-1, 2, 3001, dtype=torch.float64) - 0.5)
    for scale in (SIGMA_FLOOR, 1 / 255, 0.01):
        assert error_of_the_logistic_mean(anywhere, scale) < 1 / 40


@every_likelihood
def test_a_picture_lies_between_black_and_white_whatever_the_logits(likelihood: Likelihood) -> None:
    logits = torch.cat([torch.randn(20_000) * 2000, torch.tensor(LOGITS)])
    x_hat = likelihood.mean(logits)
    assert x_hat.min() >= 0
    assert x_hat.max() <= 1


def test_a_picture_of_a_dequantised_model_is_the_grey_level_that_its_mean_stands_for() -> None:
    logits = torch.linspace(-4, 4, 101, dtype=torch.float64)
    for plain, dequantised in (
        (ContinuousBernoulli(PLAIN), ContinuousBernoulli(DEQUANTISED)),
        (gaussian(0.1), gaussian(0.1, levels=DEQUANTISED)),
    ):
        middle = plain.mean(logits)
        expected = ((256 * middle - 0.5) / 255).clamp(0, 1)
        torch.testing.assert_close(dequantised.mean(logits), expected)


# Several draws of z for one batch of pictures.


@every_likelihood
@pytest.mark.parametrize("leading", [(6,), (2, 3)])
def test_leading_axes_of_logits_are_slices_that_meet_the_same_pictures(
    likelihood: Likelihood, leading: tuple[int, ...], logits: torch.Tensor
) -> None:
    many = torch.randn(*leading, *logits.shape, dtype=torch.float64)
    x = torch.randint(0, 2, logits.shape).double()
    together = likelihood.recon(many, x)
    assert together.shape == (*leading, 4)
    apart = [likelihood.recon(rows, x) for rows in many.reshape(6, *logits.shape)]
    torch.testing.assert_close(together.reshape(6, 4), torch.stack(apart))


@every_likelihood
@pytest.mark.parametrize("shape", [(2, 1, 3, 3), (1, 1, 3, 4), (3, 4), (5, 2, 1, 3, 4)])
def test_pictures_and_logits_of_different_shapes_are_refused(likelihood: Likelihood, shape: tuple[int, ...]) -> None:
    got = ", ".join(map(str, shape))
    with pytest.raises(ValueError, match=rf"x: got shape \({got}\), expected that of logits' rows, \(2, 1, 3, 4\)"):
        likelihood.recon(torch.zeros(5, 2, 1, 3, 4), torch.zeros(shape))


# Sigma.


def test_the_optimal_sigma_of_a_batch_is_the_one_that_makes_it_likeliest(logits: torch.Tensor) -> None:
    x = torch.rand(logits.shape, dtype=torch.float64)
    best = optimal_in_training().double().recon(logits, x).sum().item()
    mse = (x - torch.sigmoid(logits)).square().mean().item()
    assert best == pytest.approx(gaussian(math.sqrt(mse)).recon(logits, x).sum().item())
    for factor in (0.5, 0.95, 1.05, 2):
        assert best < gaussian(math.sqrt(mse) * factor).recon(logits, x).sum().item()


def test_the_gradient_through_the_optimal_sigma_is_that_of_the_logarithm_of_the_error(logits: torch.Tensor) -> None:
    x = torch.rand(logits.shape, dtype=torch.float64)
    logits.requires_grad_()
    recon = optimal_in_training().double().recon(logits, x).sum()
    # Rybkin et al. 2021, equation 5: all that is left of the loss is D/2 log(mse), D being the number of pixels.
    expected = logits.numel() / 2 * (x - torch.sigmoid(logits)).square().mean().log()
    (got,), (wanted,) = torch.autograd.grad(recon, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(got, wanted)


def test_the_running_sigma_is_the_mean_of_the_first_steps_and_settles_to_what_stays() -> None:
    sigma = OptimalSigma().train()
    for mse in (0.5, 0.3, 0.1):
        assert sigma(torch.tensor(mse)).item() == pytest.approx(mse)
    assert sigma.running.item() == pytest.approx(0.3)
    for _ in range(1500):
        sigma(torch.tensor(0.04))
    assert sigma.running.item() == pytest.approx(0.04, rel=1e-4)


def test_evaluation_holds_the_running_sigma_and_leaves_it_alone() -> None:
    sigma = OptimalSigma().train()
    sigma(torch.tensor(0.04))
    sigma.eval()
    assert sigma(torch.tensor(0.5)).item() == pytest.approx(0.04)
    assert sigma.running.item() == pytest.approx(0.04)
    assert {"running", "updates"} == set(sigma.state_dict())


@pytest.mark.parametrize("mode", [True, False])
def test_the_optimal_sigma_is_never_below_half_a_grey_level(mode: bool) -> None:
    sigma = OptimalSigma().train()
    assert sigma(torch.tensor(0.0)).sqrt().item() == pytest.approx(1 / 512)
    assert sigma.train(mode)(torch.tensor(0.0)).sqrt().item() == pytest.approx(1 / 512)


def test_learned_scales_are_never_below_half_a_grey_level() -> None:
    sigma, likelihood = LearnedSigma(), DiscretisedLogistic()
    with torch.no_grad():
        for weight in (sigma.log_above_floor, likelihood.log_above_floor):
            weight.fill_(-1000)
    assert sigma(torch.tensor(0.0)).sqrt().item() == pytest.approx(1 / 512)
    assert likelihood.scale().item() == pytest.approx(1 / 512)


# What pictures look like to a likelihood.


def test_a_grey_pixel_is_white_from_128_up() -> None:
    levels = torch.arange(256, dtype=torch.float32) / 255
    assert torch.equal(Bernoulli().settle(levels), (torch.arange(256) >= 128).float())


def test_binary_pictures_settle_to_themselves() -> None:
    binary = torch.tensor([0.0, 1.0, 1.0])
    assert torch.equal(Bernoulli().settle(binary), binary)


@pytest.mark.parametrize("likelihood", [ContinuousBernoulli(PLAIN), gaussian(1.0), logistic()])
def test_without_noise_grey_pictures_are_seen_as_they_are(likelihood: Likelihood, generator: torch.Generator) -> None:
    grey = torch.rand(2, 1, 3, 3)
    assert torch.equal(likelihood.settle(grey), grey)
    assert torch.equal(likelihood.draw(grey, generator), grey)


def test_each_binarisation_is_a_fresh_draw_with_the_probability_of_the_grey_level(generator: torch.Generator) -> None:
    x = torch.tensor([0.0, 0.25, 1.0]).repeat_interleave(20_000)
    first, second = Bernoulli().draw(x, generator), Bernoulli().draw(x, generator)
    assert not torch.equal(first, second)
    assert set(first.tolist()) == {0.0, 1.0}
    assert first.reshape(3, -1).mean(1).tolist() == pytest.approx([0, 0.25, 1], abs=0.01)


@pytest.mark.parametrize("likelihood", [Bernoulli(), ContinuousBernoulli(DEQUANTISED), gaussian(levels=DEQUANTISED)])
def test_the_same_generator_draws_the_same_pictures(likelihood: Likelihood) -> None:
    x = torch.rand(2, 1, 8, 8)
    first, second = (likelihood.draw(x, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)


def test_dequantised_pixels_are_uniform_over_the_interval_of_their_level(generator: torch.Generator) -> None:
    levels = torch.arange(256)
    y = DEQUANTISED.draw((levels / 255).expand(2000, 256), generator)
    within = 256 * y.double() - levels
    assert within.min() >= -1e-4  # float32 has so few digits left at the lightest levels
    assert within.max() <= 1 + 1e-4
    assert y.min() >= 0
    assert y.max() <= 1
    quarters = torch.histc(within.float(), bins=4, min=0, max=1) / within.numel()
    assert quarters.tolist() == pytest.approx([0.25] * 4, abs=0.005)


def test_a_settled_pixel_is_the_middle_of_its_interval_and_its_picture_the_pixel_again() -> None:
    levels = torch.arange(256)
    y = DEQUANTISED.settle(levels / 255)
    torch.testing.assert_close(256 * y, levels + 0.5)
    assert torch.equal((255 * DEQUANTISED.picture(y)).round().long(), levels)
    torch.testing.assert_close(DEQUANTISED.picture(y), levels / 255, rtol=0, atol=1e-6)


@pytest.mark.parametrize("y", [-0.5, 0.0, 1.0, 2.0])
def test_the_picture_of_a_place_beyond_the_outermost_middles_is_black_or_white(y: float) -> None:
    assert DEQUANTISED.picture(torch.tensor(y)).item() == round(min(1, max(0, y)))


@pytest.mark.parametrize(
    "likelihood",
    [ContinuousBernoulli(DEQUANTISED), gaussian(1 / 256, levels=DEQUANTISED), gaussian(0.1, levels=DEQUANTISED)],
    ids=["continuous_bernoulli", "narrow", "wide"],
)
def test_a_dequantised_density_bounds_the_mass_that_it_integrates_to(
    likelihood: ContinuousBernoulli | Gaussian, generator: torch.Generator
) -> None:
    levels = torch.tensor([127, 128, 130])
    logit = 0.01
    x = (levels / 255).double().reshape(1, 1, 1, 3).expand(20_000, -1, -1, -1)
    y = likelihood.draw(x, generator)
    # A density is per unit of y; per grey level it is 256 times lower, the 8 bits of bits/dim.
    bounds = likelihood.recon(torch.full_like(y, logit), y) + 3 * math.log(256)
    mass = 1.0
    for level in levels.tolist():
        within = torch.linspace(level / 256, (level + 1) / 256, 10_001, dtype=torch.float64)
        mass *= torch.trapezoid(log_p(likelihood, logit, within).exp(), within).item()
    error = bounds.std().item() / math.sqrt(len(bounds))
    assert bounds.mean().item() >= -math.log(mass) - 4 * error
    assert bounds.mean().item() < -math.log(mass) + 1  # a bound, and not a far one


@pytest.mark.parametrize(
    ("likelihood", "is_mass"),
    [(Bernoulli(), True), (logistic(), True), (ContinuousBernoulli(DEQUANTISED), False), (gaussian(), False)],
)
def test_a_likelihood_knows_whether_it_is_a_mass(likelihood: Likelihood, is_mass: bool) -> None:
    assert likelihood.is_mass is is_mass
