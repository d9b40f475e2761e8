"""A prior fitted after training: a Gaussian mixture over latents, and the question whether it beats N(0, I).

A decoder learns where the aggregate posterior puts its z, which is not quite N(0, I); draws from a density of that very
aggregate fall where it has learnt something. An autoencoder has no prior at all: here it gets one. Bounds and scores of
a model stay those of N(0, I).
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.coverage import EXPECTED_DENSITY, Coverage, coverage
from model.errors import BadCheckpoint, BadSetting

# Above this the full covariance of one component has more than 33,000 numbers.
LATENT_DIM_MAX = 256
# More draws than this are thinned: with as many, fitting took at most 18 s of one core in trials with 2 to 256
# dimensions.
DRAWS_MAX = 10_000
# Pictures on either side of the comparison with N(0, I): a share of so many has a standard error of at most 0.007.
PICTURES_MAX = 5_000

# Numbers of components that are tried after one.
_LARGER = (10, 50, 100)
# A component's covariance is fitted to at least that many draws for each row of it, on average. Draws held back guard
# against too many components; this bounds the time.
_DRAWS_PER_DIMENSION = 5
_HELD_OUT_SHARE = 0.1
# Added to each variance, in units of the dimension's own: no component is narrower than a hundredth of the whole in any
# direction, so none collapses onto a few draws, and factors stay well conditioned in float32.
_REGULARISATION = 1e-4
# A dimension narrower than this share of the widest is taken as a constant.
_NARROWEST = 1e-6
# Real pictures have about 1, a few hundredths more or less.
_REALISTIC_DENSITY = 0.9 * EXPECTED_DENSITY
# Rounding of 100 weights to float32 leaves their sum much nearer to 1.
_SUM_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class FittedPrior:
    """A mixture of k Gaussians over z: p(z) = sum over k of weights[k] N(z; means[k], cholesky[k] cholesky[k]^T).

    Shapes:  weights (k,), means (k, latent_dim), cholesky (k, latent_dim, latent_dim) lower triangular, float32
    """

    weights: Tensor
    means: Tensor
    cholesky: Tensor

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """Draws of z; the same state of the generator gives the same draws.

        Shapes:  -> (n, latent_dim) float32
        """
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator)
        # One component at a time: a factor for each row would take n times the memory of one.
        for k, (mean, factor) in enumerate(zip(self.means, self.cholesky, strict=True)):
            rows = component == k
            z[rows] = mean + z[rows] @ factor.T
        return z

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density at z, one value per row.

        Shapes:  z (n, latent_dim) -> (n,) float64
        Units:   nats, summed over latent dimensions
        """
        log_components = [
            _log_normal(z.double(), mean, factor)
            for mean, factor in zip(self.means.double(), self.cholesky.double(), strict=True)
        ]
        return torch.logsumexp(torch.stack(log_components, dim=1) + self.weights.double().log(), dim=1)

    def tensors(self) -> dict[str, Tensor]:
        """The content of `prior.safetensors`."""
        return {name: getattr(self, name).contiguous() for name in ("weights", "means", "cholesky")}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "FittedPrior":
        """The prior that `tensors` gave.

        Raises:  BadCheckpoint if names, types or shapes are not those of a prior, or numbers not those of a density
        """
        if set(tensors) != {"weights", "means", "cholesky"}:
            raise BadCheckpoint(f"fitted prior: got tensors {sorted(tensors)}, expected cholesky, means, weights")
        prior = cls(**tensors)
        # Where means have another number of axes, this is a shape that they do not have, and they are named.
        components, latent_dim = (*prior.means.shape, 1, 1)[:2]
        _check("weights", prior.weights, (components,))
        _check("means", prior.means, (components, latent_dim))
        _check("cholesky", prior.cholesky, (components, latent_dim, latent_dim))
        total, smallest = float(prior.weights.double().sum()), float(prior.weights.min())
        if abs(total - 1) > _SUM_TOLERANCE or smallest < 0:
            got = f"sum {total:.6g} and smallest {smallest:.6g}"
            raise BadCheckpoint(f"fitted prior, weights: got {got}, expected sum 1 and none below 0")
        above, diagonal = prior.cholesky.triu(1), prior.cholesky.diagonal(dim1=1, dim2=2)
        if bool(above.any()) or float(diagonal.min()) <= 0:
            got = f"up to {float(above.abs().max()):.6g} above the diagonal and {float(diagonal.min()):.6g} on it"
            raise BadCheckpoint(f"fitted prior, cholesky: got {got}, expected 0 above and numbers above 0 on it")
        return prior


@dataclass(frozen=True)
class Comparison:
    """Density and coverage of pictures decoded from N(0, I) and from a fitted prior, among the same held-out ones."""

    standard: Coverage
    fitted: Coverage

    @property
    def keep(self) -> bool:
        """Whether the fitted prior improves on N(0, I) in both; beyond about what real pictures have, more density is
        no improvement, as only smoother pictures have more.
        """
        least_density = min(self.standard.density, _REALISTIC_DENSITY)
        return self.fitted.density > least_density and self.fitted.coverage > self.standard.coverage


def fit(z: Tensor, *, seed: int) -> FittedPrior:
    """The full-covariance Gaussian mixture that describes draws of z best.

    It has 1, 10, 50 or 100 components: the number grows while there are five draws for each dimension of each of them,
    and while that makes a tenth of the draws, held back, more probable. One seed gives one mixture, on one machine and
    number of threads.

    Shapes:  z (n, latent_dim): a draw from the posterior of each picture, or an autoencoder's codes
    Raises:  BadSetting if latent_dim is above `LATENT_DIM_MAX`, or z has too few rows, or does not vary
    Source:  Ghosh et al. 2020, section 4 (ex-post density estimation), arXiv:1903.12436
    """
    draws, held_out = _split(z, seed)
    centre, spread = draws.mean(0), draws.std(0)
    if spread.max() == 0:
        raise BadSetting("fitted prior: got draws of z that are all equal, expected some that vary")
    spread = np.maximum(spread, _NARROWEST * spread.max())
    # Fitted in units of each dimension's spread, since an autoencoder's codes have any scale.
    draws, held_out = (draws - centre) / spread, (held_out - centre) / spread
    best = _mixture(draws, components=1, seed=seed)
    for components in _LARGER:
        if components * _DRAWS_PER_DIMENSION * z.shape[1] > len(draws):
            break
        larger = _mixture(draws, components=components, seed=seed)
        if larger.score(held_out) <= best.score(held_out):
            break
        best = larger
    return FittedPrior(
        weights=torch.from_numpy(best.weights_).float(),
        means=torch.from_numpy(centre + spread * best.means_).float(),
        cholesky=torch.from_numpy(spread[:, None] * np.linalg.cholesky(best.covariances_)).float(),
    )


def compare(
    prior: FittedPrior,
    *,
    decode: Callable[[Tensor], NDArray[np.uint8]],
    held_out: NDArray[np.uint8],
    generator: torch.Generator,
) -> Comparison:
    """What a fitted prior changes: as many pictures from it and from N(0, I) as there are held-out ones.

    Shapes:  decode z (n, latent_dim) -> images (n, h, w, c), in batches of its own; held_out (n, h, w, c), of which
             the first `PICTURES_MAX` count
    Raises:  ValueError if there are too few held-out pictures, or decoded ones have another size
    """
    real = held_out[:PICTURES_MAX]
    standard = torch.randn(len(real), prior.means.shape[1], generator=generator)
    fitted = prior.sample(len(real), generator=generator)
    return Comparison(standard=coverage(decode(standard), real), fitted=coverage(decode(fitted), real))


def _split(z: Tensor, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draws to fit with and draws to choose by, thinned to `DRAWS_MAX` in all."""
    n, latent_dim = z.shape
    if latent_dim > LATENT_DIM_MAX:
        raise BadSetting(f"fitted prior: got {latent_dim} latent dimensions, expected at most {LATENT_DIM_MAX}")
    if n < _DRAWS_PER_DIMENSION * latent_dim:
        expected = f"{_DRAWS_PER_DIMENSION} for each of {latent_dim} dimensions"
        raise BadSetting(f"fitted prior: got {n} draws of z, expected at least {expected}")
    order = np.random.default_rng(seed).permutation(n)[:DRAWS_MAX]
    rows = z.double().numpy()[order]
    n_held_out = math.ceil(_HELD_OUT_SHARE * len(rows))
    return rows[n_held_out:], rows[:n_held_out]


def _mixture(draws: NDArray[np.float64], *, components: int, seed: int) -> Any:
    # Imported here: it takes a second that only those who fit a prior should wait for.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    # scikit-learn's seeds have 32 bits.
    mixture = GaussianMixture(components, reg_covar=_REGULARISATION, random_state=seed % 2**32)
    with warnings.catch_warnings():
        # A mixture short of its optimum is a density all the same, and is judged by draws that it has not seen.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(draws)


def _log_normal(z: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """log N(z; mean, factor factor^T): z (n, d), mean (d,), factor (d, d) lower triangular -> (n,)."""
    whitened: Tensor = torch.linalg.solve_triangular(factor, (z - mean).T, upper=False)
    log_determinant = factor.diagonal().log().sum()
    return -0.5 * (whitened.square().sum(0) + len(mean) * math.log(2 * math.pi)) - log_determinant


def _check(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.dtype != torch.float32 or tensor.shape != shape or not bool(tensor.isfinite().all()):
        got = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise BadCheckpoint(f"fitted prior, {name}: got {got}, expected finite float32 of shape {shape}")
