"""What the latents of a seed are drawn from: N(0, I), or the density that was fitted to a model's latents."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service import latents
from service.bundle import BadBundle, tensors_of
from service.errors import ModelCannot
from service.latents import Purpose
from service.manifest import Manifest

Float32 = NDArray[np.float32]

# Rounding of 100 weights to float32 leaves their sum much nearer to 1.
_SUM_TOLERANCE = 1e-4


@dataclass(frozen=True)
class StandardPrior:
    """N(0, I) over latents of one shape."""

    latent_shape: tuple[int, ...]

    def sample(self, seed: int, *, n: int, temperature: float = 1.0) -> Float32:
        """The first n latents of a seed, their standard deviation multiplied by the temperature.

        Shapes:  -> (n, *latent_shape)
        """
        return latents.prior_sample(seed, n=n, latent_shape=self.latent_shape, temperature=temperature)

    def cost_us(self, n: int) -> float:
        """What n latents cost."""
        return latents.normals_cost_us(n * int(np.prod(self.latent_shape)))


@dataclass(frozen=True, eq=False)
class FittedPrior:
    """A mixture of k Gaussians over flat latents: the sum over j of weights[j] N(means[j], cholesky[j] cholesky[j]^T).

    Shapes:  weights (k,), means (k, latent_dim), cholesky (k, latent_dim, latent_dim) lower triangular
    """

    weights: Float32
    means: Float32
    cholesky: Float32

    def sample(self, seed: int, *, n: int, temperature: float = 1.0) -> Float32:
        """The first n latents of a seed, their distance from the mean of their component multiplied by the temperature.

        Row i takes the component whose share of [0, 1) holds v of block 0 of the row's draw 1, the shares being the
        weights in order; its eps are the normals of draw 0; z = mean + temperature * (cholesky eps) in float64, rounded
        to float32.

        Shapes:  -> (n, latent_dim)
        """
        cumulative = np.cumsum(self.weights, dtype=np.float64)
        _, v = latents.uniforms(seed, Purpose.FITTED, row=np.arange(n), draw=np.ones(n, np.int64), blocks=1)
        component = np.searchsorted(cumulative / cumulative[-1], v[:, 0], side="right")
        eps = latents.normals(seed, Purpose.FITTED, rows=n, latent_shape=self.means.shape[1:])[:, 0].astype(np.float64)
        z = np.empty(eps.shape, np.float32)
        for k in np.unique(component):
            rows = component == k
            factor = self.cholesky[k].astype(np.float64)
            # Added column by column: a matrix product's order, and so its last bits, would depend on the CPU and on n.
            spread = sum(noise[:, None] * column for noise, column in zip(eps[rows].T, factor.T, strict=True))
            z[rows] = self.means[k] + temperature * spread
        return z

    def cost_us(self, n: int) -> float:
        """What n latents cost, most of them from components of their own."""
        components, latent_dim = (int(axis) for axis in self.means.shape)
        columns = min(n, components) * latent_dim
        return 2 * latents.normals_cost_us(n * latent_dim) + 2 * columns + 0.003 * n * latent_dim**2


Prior = StandardPrior | FittedPrior


def choose(
    fitted: FittedPrior | None,
    manifest: Manifest,
    *,
    asked: Literal["standard", "fitted"] | None,
    latent_shape: tuple[int, ...],
) -> Prior:
    """The prior that was asked for; unasked, N(0, I) of a VAE and the fitted one of an autoencoder.

    Raises:  ModelCannot if the model lacks it
    """
    if asked == "standard" and manifest.prior == "none":
        raise ModelCannot(f"prior=standard: {manifest.label} is an autoencoder, its latents know no N(0, I)")
    if asked != "fitted" and manifest.prior == "standard":
        return StandardPrior(latent_shape)
    if fitted is None:
        if asked is None:
            raise ModelCannot(f"prior: {manifest.label} is an autoencoder without a fitted one, no seed has latents")
        raise ModelCannot(f"prior=fitted: {manifest.label} carries no fitted prior")
    return fitted


def read(content: bytes, path: Path, *, latent_dim: int) -> FittedPrior:
    """The prior that a bundle's `prior.safetensors` holds.

    Raises:  BadBundle if names, types or shapes are not those of a prior, or numbers not those of a density
    """
    tensors = tensors_of(content, path)
    if set(tensors) != {"weights", "means", "cholesky"}:
        raise BadBundle(f"{path}: its tensors are {sorted(tensors)}, expected cholesky, means, weights")
    weights = tensors["weights"]
    if weights.ndim != 1 or len(weights) == 0:
        raise BadBundle(f"{path}: weights is {weights.dtype} {weights.shape}, expected float32 (k,), k ≥ 1")
    k = len(weights)
    shapes = {"weights": (k,), "means": (k, latent_dim), "cholesky": (k, latent_dim, latent_dim)}
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.dtype != np.float32 or tensor.shape != shape:
            raise BadBundle(f"{path}: {name} is {tensor.dtype} {tensor.shape}, expected float32 {shape}")
        if not np.isfinite(tensor).all():
            raise BadBundle(f"{path}: {name} holds NaN or infinity, expected finite numbers")
    prior = FittedPrior(**tensors)
    total, smallest = float(prior.weights.sum(dtype=np.float64)), float(prior.weights.min())
    if abs(total - 1) > _SUM_TOLERANCE or smallest < 0:
        raise BadBundle(
            f"{path}: weights have the sum {total:.6g} and the smallest {smallest:.6g}, expected sum 1 and none below 0"
        )
    above, on = float(np.abs(np.triu(prior.cholesky, 1)).max()), float(prior.cholesky.diagonal(axis1=1, axis2=2).min())
    if above > 0 or on <= 0:
        raise BadBundle(
            f"{path}: cholesky has up to {above:.6g} above its diagonals and down to {on:.6g} on them, "
            "expected 0 above and numbers above 0 on them"
        )
    return prior
