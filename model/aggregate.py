"""The aggregate posterior, q(z) = mean over pictures of q(z given x): its moments, and how far it is from the prior."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Rows of z that a discrepancy is measured with: its three matrices then take under 100 MB.
MMD_ROWS = 2000
# Multiples of C = 2 d sigma^2, summed over, so that no single width of the kernel has to be right: those of the
# authors' published code.
MMD_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True, eq=False)
class Moments:
    """Exact moments of z = mu + exp(logvar / 2) * eps over pictures and eps; N(0, I) has 0, 1 and 0.

    Shapes:  mean, variance (latent_dim,)
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    correlation_max: float
    """Largest absolute correlation of two latent dimensions; 0 where there is one dimension."""


@dataclass(frozen=True)
class Discrepancy:
    """Squared maximum mean discrepancy of two samples, with two yardsticks: one to tell it from 0, one from another."""

    mmd: float
    """The estimate; without bias, so it may be a little below 0."""
    spread: float
    """Standard deviation that the estimate would have if both samples had one distribution."""
    standard_error: float
    """Standard deviation that it has, whatever their distributions are: far from 0, many times the spread."""
    n: int
    """Rows of each sample."""


@dataclass(frozen=True)
class ClampShare:
    """Shares of the entries of logvar that lie at the ends of its range, 0 to 1."""

    low: float
    high: float


def moments(mu: Tensor, logvar: Tensor | None) -> Moments:
    """Mean, variance and largest correlation of z over all pictures: var z = var mu + mean exp(logvar).

    Shapes:  mu, logvar (n, latent_dim); logvar None for the codes of an autoencoder
    """
    mu = mu.double()
    centred = mu - mu.mean(0)
    covariance = centred.T @ centred / len(mu)
    if logvar is not None:
        covariance += torch.diag(logvar.double().exp().mean(0))
    variance = covariance.diagonal()
    # A code that never varies correlates with nothing.
    scale = torch.where(variance > 0, variance, 1.0).rsqrt()
    correlation = (covariance * scale[:, None] * scale[None, :]).abs().fill_diagonal_(0)
    return Moments(mean=mu.mean(0).numpy(), variance=variance.numpy(), correlation_max=float(correlation.max()))


def discrepancy_to_prior(z: Tensor, generator: torch.Generator) -> Discrepancy:
    """Discrepancy between draws of the aggregate posterior and as many of N(0, I), at most `MMD_ROWS` of each.

    Shapes:  z (n, latent_dim), one draw for each of n pictures
    Raises:  ValueError if n is below 2
    Source:  Tolstikhin et al. 2018, algorithm 2, arXiv:1711.01558
    """
    rows = torch.randperm(len(z), generator=generator)[:MMD_ROWS]
    z = z[rows].double()
    return discrepancy(z, torch.randn(z.shape, generator=generator, dtype=z.dtype))


def discrepancy(z: Tensor, other: Tensor) -> Discrepancy:
    """Squared maximum mean discrepancy of two samples, under the kernel sum over s of sC / (sC + |z - z'|^2), C = 2 d.

    Estimated without bias; s runs over `MMD_SCALES`.

    Shapes:  z, other (n, d) -> scalars
    Raises:  ValueError if the shapes differ or n is below 2
    Source:  Tolstikhin et al. 2018, algorithm 2 and section 4 (sigma = 1), arXiv:1711.01558; spread: Gretton et al.
             2012, lemma 6 and appendix B.3, jmlr.org/papers/v13/gretton12a.html; standard error: Hoeffding 1948,
             equation 5.13 (the variance of a U-statistic), doi:10.1214/aoms/1177730196
    """
    if other.shape != z.shape or len(z) < 2:
        raise ValueError(f"samples: got {tuple(z.shape)} and {tuple(other.shape)}, expected one shape and n above 1")
    n = len(z)
    within_z, within_other, across = _kernel(z, z), _kernel(other, other), _kernel(z, other)
    within = within_z + within_other
    mmd = _off_diagonal_mean(within) - 2 * across.mean()
    # The terms of the U-statistic; with equal distributions its variance is that of one term over n (n - 1) / 2.
    terms = within - across - across.T
    mean_square = _off_diagonal_mean(terms.square())
    spread = (mean_square * 2 / (n * (n - 1))).sqrt()
    # Elsewhere that of one row's mean over all others counts too; as it was measured, it has a share of that of terms.
    of_terms = mean_square - _off_diagonal_mean(terms).square()
    row_means = (terms.sum(1) - terms.diagonal()) / (n - 1)
    of_rows = (row_means.var() - of_terms / (n - 1)).clamp(min=0)
    variance = (4 * (n - 2) * of_rows + 2 * of_terms) / (n * (n - 1))
    return Discrepancy(mmd=float(mmd), spread=float(spread), standard_error=float(variance.clamp(min=0).sqrt()), n=n)


def clamp_share(logvar: Tensor, logvar_range: tuple[float, float]) -> ClampShare:
    """Shares of logvar's entries at either end of the range that it is clamped to.

    Shapes:  logvar (n, latent_dim)
    """
    # In float32, as the clamp itself: its ends may lie beside the range's decimal numbers.
    low, high = torch.tensor(logvar_range, dtype=torch.float32)
    entries = logvar.float()
    return ClampShare(low=float((entries <= low).double().mean()), high=float((entries >= high).double().mean()))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """(n, d), (n, d) -> (n, n), the sum over scales."""
    squared_distances = torch.cdist(a.double(), b.double()).square()
    c = 2 * a.shape[1]
    total = torch.zeros_like(squared_distances)
    for scale in MMD_SCALES:
        total += scale * c / (scale * c + squared_distances)
    return total


def _off_diagonal_mean(matrix: Tensor) -> Tensor:
    n = len(matrix)
    return (matrix.sum() - matrix.diagonal().sum()) / (n * (n - 1))
