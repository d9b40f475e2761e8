"""Likelihoods against torch.distributions and integration: normalised, in nats, summed per picture."""

import itertools
import math

import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Normal

from model.likelihoods import Bernoulli, Gaussian, Likelihood


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(4, 3, 5, 2, generator=torch.Generator().manual_seed(0)) * 3


def test_bernoulli_is_that_of_torch_distributions(logits: torch.Tensor) -> None:
    x = (torch.rand(logits.shape) < 0.5).float()
    expected = -TorchBernoulli(logits=logits).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(Bernoulli().recon(logits, x), expected)


def test_bernoulli_is_a_mass() -> None:
    logits = torch.tensor([[[[0.3, -2.0], [4.0, 1.1]]]])
    pictures = [torch.tensor(bits).reshape(1, 1, 2, 2) for bits in itertools.product((0.0, 1.0), repeat=4)]
    total = sum(math.exp(-Bernoulli().recon(logits, x).item()) for x in pictures)
    assert total == pytest.approx(1, abs=1e-6)


def test_gaussian_is_that_of_torch_distributions(logits: torch.Tensor) -> None:
    x = torch.rand(logits.shape)
    expected = -Normal(torch.sigmoid(logits), 0.2).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(Gaussian(0.2).recon(logits, x), expected)


def test_gaussian_is_a_density() -> None:
    x = torch.linspace(-5, 6, 100_001, dtype=torch.float64)
    logits = torch.full_like(x, 0.4).reshape(-1, 1, 1, 1)
    density = torch.exp(-Gaussian(0.3).recon(logits, x.reshape(-1, 1, 1, 1)))
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.2)])
def test_the_gradient_is_the_finite_difference(likelihood: Likelihood) -> None:
    logits = torch.randn(2, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(4).reshape(2, 1, 2, 2)
    assert torch.autograd.gradcheck(lambda t: likelihood.recon(t, x), (logits.requires_grad_(),))


def test_a_grey_pixel_is_white_from_128_up() -> None:
    levels = torch.arange(256, dtype=torch.float32) / 255
    assert torch.equal(Bernoulli().settle(levels), (torch.arange(256) >= 128).float())


def test_binary_pictures_settle_to_themselves_and_grey_ones_stay_grey_for_a_gaussian() -> None:
    binary, grey = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.1, 0.5, 0.9])
    assert torch.equal(Bernoulli().settle(binary), binary)
    assert torch.equal(Gaussian(1.0).settle(grey), grey)
    assert torch.equal(Gaussian(1.0).draw(grey, torch.Generator()), grey)


def test_each_binarisation_is_a_fresh_draw_with_the_probability_of_the_grey_level() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor([0.0, 0.25, 1.0]).repeat_interleave(20_000)
    first, second = Bernoulli().draw(x, generator), Bernoulli().draw(x, generator)
    assert not torch.equal(first, second)
    assert first.reshape(3, -1).mean(1).tolist() == pytest.approx([0, 0.25, 1], abs=0.01)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.2)])
def test_pictures_and_logits_of_different_shapes_are_refused(likelihood: Likelihood) -> None:
    with pytest.raises(ValueError, match=r"got shape \(2, 1, 3, 3\), expected that of logits, \(2, 1, 3, 4\)"):
        likelihood.recon(torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 3))
