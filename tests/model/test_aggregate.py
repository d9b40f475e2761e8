"""Moments and discrepancy of the aggregate posterior against simulation and loops."""

import math

import numpy as np
import pytest
import torch

from model import aggregate as module
from model.aggregate import clamp_share, discrepancy, discrepancy_to_prior, moments


def normal(n: int, d: int, *, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_moments_are_those_of_many_draws() -> None:
    mu = normal(5, 3, seed=0) @ normal(3, 3, seed=1)
    logvar = normal(5, 3, seed=2)
    found = moments(mu, logvar)
    draws = (
        mu + torch.exp(logvar / 2) * torch.randn(200_000, 5, 3, generator=torch.Generator().manual_seed(3))
    ).reshape(-1, 3)
    np.testing.assert_allclose(found.mean, draws.mean(0).numpy(), atol=0.01)
    np.testing.assert_allclose(found.variance, draws.var(0).numpy(), rtol=0.01)
    correlation = np.abs(np.corrcoef(draws.numpy().T))
    assert found.correlation_max == pytest.approx(correlation[np.triu_indices(3, 1)].max(), abs=0.005)


def test_an_autoencoders_codes_have_the_moments_of_mu() -> None:
    mu = normal(50, 4, seed=4)
    found = moments(mu.float(), None)
    np.testing.assert_allclose(found.variance, mu.var(0, correction=0).numpy(), rtol=1e-6)
    assert found.correlation_max == pytest.approx(np.abs(np.corrcoef(mu.numpy().T) - np.eye(4)).max(), abs=1e-6)


def test_a_constant_code_and_a_single_dimension_correlate_with_nothing() -> None:
    mu = normal(20, 2, seed=5)
    mu[:, 1] = 3.0
    assert moments(mu, None).correlation_max == 0
    assert moments(mu[:, :1], None).correlation_max == 0


def test_discrepancy_is_that_of_a_loop_over_pairs() -> None:
    z, other = normal(6, 2, seed=6), normal(6, 2, seed=7) + 1
    expected = 0.0
    for scale in (0.1, 0.2, 0.5, 1, 2, 5, 10):
        c = scale * 2 * 2
        for i in range(6):
            for j in range(6):
                apart = i != j
                expected += apart * c / (c + float(((z[i] - z[j]) ** 2).sum())) / (6 * 5)
                expected += apart * c / (c + float(((other[i] - other[j]) ** 2).sum())) / (6 * 5)
                expected -= 2 * c / (c + float(((z[i] - other[j]) ** 2).sum())) / 36
    assert discrepancy(z, other).mmd == pytest.approx(expected)


def test_equal_distributions_have_no_discrepancy_on_average_and_the_stated_spread() -> None:
    found = [discrepancy(normal(40, 3, seed=2 * s), normal(40, 3, seed=2 * s + 1)) for s in range(400)]
    estimates = np.array([one.mmd for one in found])
    assert abs(estimates.mean()) < 4 * estimates.std() / math.sqrt(len(estimates))
    assert np.mean([one.spread for one in found]) == pytest.approx(estimates.std(), rel=0.15)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.15, 0.9), (1.0, 3.0)])
def test_the_standard_error_is_how_much_estimates_vary_wherever_the_samples_lie(shift: float, scale: float) -> None:
    found = [
        discrepancy(shift + scale * normal(150, 4, seed=2 * trial), normal(150, 4, seed=2 * trial + 1))
        for trial in range(300)
    ]
    deviation = np.std([one.mmd for one in found])
    # A sixth too large where they are equal: what is estimated there is 0, and noise below it does not count.
    assert np.mean([one.standard_error for one in found]) == pytest.approx(deviation, rel=0.2)


def test_a_wider_a_shifted_and_a_collapsed_aggregate_are_told_from_the_prior() -> None:
    z = normal(400, 8, seed=8).float()
    same = discrepancy_to_prior(z, torch.Generator().manual_seed(0))
    assert abs(same.mmd) < 4 * same.spread
    for other in (1.5 * z, z + 0.5, 0.1 * z):
        found = discrepancy_to_prior(other, torch.Generator().manual_seed(0))
        assert found.mmd > 10 * found.spread


def test_discrepancy_to_the_prior_is_repeatable_and_bounded_in_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MMD_ROWS", 50)
    z = normal(70, 2, seed=9).float()
    found = discrepancy_to_prior(z, torch.Generator().manual_seed(1))
    assert found == discrepancy_to_prior(z, torch.Generator().manual_seed(1))
    assert found.n == 50


def test_a_single_row_and_samples_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"samples: got \(1, 2\) and \(1, 2\), expected one shape and n above 1"):
        discrepancy(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"samples: got \(3, 2\) and \(4, 2\)"):
        discrepancy(torch.zeros(3, 2), torch.zeros(4, 2))


def test_entries_at_the_ends_of_the_range_are_counted_whatever_the_range_rounds_to() -> None:
    limits = (-6.9, 0.1)  # neither is a float32
    logvar = torch.tensor([[-9.0, -6.8, 0.0, 0.3], [-7.0, -6.8999, 0.1, 5.0]]).clamp(*limits)
    for entries in (logvar, logvar.double()):
        found = clamp_share(entries, limits)
        assert (found.low, found.high) == (2 / 8, 3 / 8)
