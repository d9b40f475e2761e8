"""How far answers are from the source's, in the units that a manifest's tolerances speak of."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

# Heads that emit no logarithm: of a small sigma, taking it magnifies the last digits of what they emit.
_CONVERTED_HEADS = frozenset({"variance", "sigma"})
_SMALL_SIGMA = 1e-3
_TINY = 1e-30
# Of mu's spread. A difference of a tenth of it moves nothing that a decoder or a client of embeddings could see, and
# a sigma below it is only what a tiny weight of the KL has left: float16 alone rounds by several of such.
_LEAST_UNIT = 0.01


def absolute(found: NDArray[Any], expected: NDArray[Any]) -> Float64:
    """The size of each difference, shape and all as in both."""
    return np.abs(found.astype(np.float64) - expected.astype(np.float64))


def of_mu(found: NDArray[Any], expected: NDArray[Any]) -> Float64:
    """Differences of mu, relative to its spread above 1."""
    return absolute(found, expected) / unit_of_mu(expected)


def unit_of_mu(mu: NDArray[Any]) -> float:
    """What differences of mu are relative to in fp32: the standard deviation of all of it, over rows and dimensions, or
    1 where that is smaller. Codes that nothing holds near 0 reach hundreds, and float32 rounds in proportion.
    """
    return max(1.0, float(mu.astype(np.float64).std()))


def of_logvar(found: NDArray[Any], expected: NDArray[Any], *, scale_head: str | None) -> Float64:
    """Differences of logvar; where the source emitted sigma or sigma² and sigma is below 0.001, those of sigma."""
    if scale_head not in _CONVERTED_HEADS:
        return absolute(found, expected)
    sigma = np.exp(expected.astype(np.float64) / 2)
    of_sigma = np.abs(np.exp(found.astype(np.float64) / 2) - sigma)
    return np.where(sigma < _SMALL_SIGMA, of_sigma, absolute(found, expected))


def of_sums(found: NDArray[Any], expected: NDArray[Any]) -> Float64:
    """Differences of sums over a picture, as log-likelihoods are, relative to their size above 1."""
    return absolute(found, expected) / np.maximum(1, np.abs(expected.astype(np.float64)))


def in_sigma(found: NDArray[Any], mu: NDArray[Any], logvar: NDArray[Any] | None) -> Float64:
    """Differences of mu in units of the posterior's sigma, or of a hundredth of mu's spread where that is larger. The
    spread is the standard deviation of all of mu, over rows and dimensions; of an autoencoder it is the unit itself.
    """
    spread = float(mu.astype(np.float64).std())
    if logvar is None:
        return absolute(found, mu) / max(spread, _TINY)
    sigma: Float64 = np.exp(logvar.astype(np.float64) / 2)
    return absolute(found, mu) / np.maximum(sigma, max(_LEAST_UNIT * spread, _TINY))


def psnr_db(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of all pictures together; infinite where they are equal."""
    mean_square = float((absolute(found, expected) ** 2).mean())
    return 10 * math.log10(255**2 / mean_square) if mean_square else math.inf
