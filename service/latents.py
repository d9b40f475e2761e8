"""Randomness, geometry and densities of latents: seeded normals, draws, paths, scores. Pure numpy, no state.

The seed contract (docs/api.md): a normal is a function of (seed, purpose, row, draw, element) and of nothing
else, so picture i of seed s is the same on every device and at every position of a batch.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Uint32 = NDArray[np.uint32]

MAX_SEED = 2**63 - 1

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
# Blocks that are computed at a time: what lies between bits and normals then takes a few MiB, however many are wanted.
_SLAB_BLOCKS = 2**15


class Purpose(IntEnum):
    """What normals are for; each purpose has streams of its own under one seed."""

    PRIOR = 0
    POSTERIOR = 1
    SCORE = 2
    FITTED = 3


def philox4x32(counter: Uint32, key: tuple[int, int]) -> Uint32:
    """Ten rounds of Philox4x32 over many counters at once.

    Shapes:  counter (4, m) -> (4, m)
    Source:  Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3
    """
    c0, c1, c2, c3 = counter.astype(np.uint64)
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _HALF) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _HALF) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3)).astype(np.uint32)


def uniforms(
    seed: int, purpose: Purpose, *, row: NDArray[np.int64], draw: NDArray[np.int64], blocks: int
) -> tuple[Float64, Float64]:
    """The two uniforms of each block, u in (0, 1] and v in [0, 1), of 53 bits each.

    Block w of a row and draw is Philox under key = seed and counter = (w, draw, row, purpose); its first two words
    make u, its last two v.

    Shapes:  row, draw (m,) -> u, v (m, blocks)
    """
    m = len(row)
    counter = np.empty((4, m, blocks), np.uint32)
    counter[0], counter[1], counter[2], counter[3] = np.arange(blocks), draw[:, None], row[:, None], purpose
    words = philox4x32(counter.reshape(4, -1), (seed & 0xFFFFFFFF, seed >> 32)).astype(np.uint64)
    x0, x1, x2, x3 = words.reshape(4, m, blocks)
    u = (((x0 << _HALF | x1) >> np.uint64(11)) + np.uint64(1)) * np.float64(2.0**-53)
    v = ((x2 << _HALF | x3) >> np.uint64(11)) * np.float64(2.0**-53)
    return u, v


def normals(seed: int, purpose: Purpose, *, rows: int, latent_shape: tuple[int, ...], draws: int = 1) -> Float32:
    """Standard normals of a seed; fewer rows or draws are a prefix of more.

    The uniforms of block w of a row and draw make its normals 2w and 2w + 1, in float64, rounded to float32 at the end.

    Shapes:  -> (rows, draws, *latent_shape)
    Source:  Box & Muller 1958, "A note on the generation of random normal deviates"
    """
    size = int(np.prod(latent_shape))
    blocks = (size + 1) // 2
    row, draw = np.divmod(np.arange(rows * draws), draws)
    values = np.empty((rows * draws, size), np.float32)
    slab = max(1, _SLAB_BLOCKS // blocks)
    for start in range(0, len(values), slab):
        part = slice(start, start + slab)
        u, v = uniforms(seed, purpose, row=row[part], draw=draw[part], blocks=blocks)
        radius, angle = np.sqrt(-2.0 * np.log(u)), 2.0 * np.pi * v
        pairs = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=-1)
        values[part] = pairs.reshape(-1, 2 * blocks)[:, :size]
    return values.reshape(rows, draws, *latent_shape)


def prior_sample(seed: int, *, n: int, latent_shape: tuple[int, ...], temperature: float = 1.0) -> Float32:
    """Rows from N(0, temperature² I).

    Shapes:  -> (n, *latent_shape)
    """
    z = normals(seed, Purpose.PRIOR, rows=n, latent_shape=latent_shape)[:, 0]
    scaled: Float32 = z * np.float32(temperature)
    return scaled


def posterior_sample(mu: Float32, logvar: Float32, *, seed: int, draws: int) -> Float32:
    """Draws from q(z given x) of each row, as a seed gives them.

    Shapes:  mu, logvar (n, *latent_shape) -> (n, draws, *latent_shape)
    """
    return reparameterise(
        mu, logvar, normals(seed, Purpose.POSTERIOR, rows=len(mu), latent_shape=mu.shape[1:], draws=draws)
    )


def reparameterise(mu: Float32, logvar: Float32, eps: Float32) -> Float32:
    """z = mu + exp(logvar / 2) * eps: the draws from each posterior that this noise gives.

    Shapes:  mu, logvar (n, *latent_shape), eps (n, draws, *latent_shape) -> (n, draws, *latent_shape)
    Source:  Kingma & Welling 2014, section 2.4, arXiv:1312.6114
    """
    z: Float32 = mu[:, None] + np.exp(logvar / np.float32(2))[:, None] * eps
    return z


def kl(mu: Float32, logvar: Float32) -> Float64:
    """KL divergence from N(mu, exp(logvar)) to N(0, I), one value per row.

    Shapes:  mu, logvar (n, *latent_shape) -> (n,)
    Units:   nats, summed over latent dimensions
    Source:  Kingma & Welling 2014, appendix B, arXiv:1312.6114
    """
    wide_mu, wide_logvar = mu.reshape(len(mu), -1).astype(np.float64), logvar.reshape(len(mu), -1).astype(np.float64)
    # expm1(logvar) - logvar and not exp(logvar) - 1 - logvar: near 0 the latter would round below zero.
    nats: Float64 = 0.5 * (wide_mu**2 + np.expm1(wide_logvar) - wide_logvar).sum(axis=1)
    return nats


def importance_weighted_bound(log_likelihood: Float32, *, z: Float32, eps: Float32, logvar: Float32) -> Float64:
    """log 1/k sum of p(x given z_j) p(z_j) / q(z_j given x) over k draws z_j from each posterior: a lower bound of
    log p(x) in expectation, which rises to it with k. p(z) is N(0, I).

    Shapes:  log_likelihood (n, k); z, eps (n, k, *latent_shape), as `reparameterise` takes and gives them;
             logvar (n, *latent_shape) -> (n,)
    Units:   nats
    Source:  Burda et al. 2016, equation 8, arXiv:1509.00519
    """
    n, k = log_likelihood.shape
    # log q is taken from eps: divided by a small sigma, the rounding of z to float32 would count as distance from mu.
    log_ratio = 0.5 * (
        _sum_of_squares(eps.reshape(n, k, -1))
        - _sum_of_squares(z.reshape(n, k, -1))
        + logvar.reshape(n, 1, -1).sum(axis=-1, dtype=np.float64)
    )
    bound: Float64 = np.logaddexp.reduce(log_likelihood + log_ratio, axis=1) - np.log(k)
    return bound


def _sum_of_squares(values: Float32) -> Float64:
    """Sums over the last axis in float64, without a copy in float64."""
    sums: Float64 = np.einsum("nkd,nkd->nk", values, values, dtype=np.float64)
    return sums


def linear(z1: Float32, z2: Float32, alpha: Float32) -> Float32:
    """z(α) = (1 − α) z₁ + α z₂, one row for each α.

    Shapes:  z1, z2 (*latent_shape); alpha (m,) -> (m, *latent_shape)
    """
    alpha = alpha.reshape(-1, *(1,) * z1.ndim)
    line: Float32 = (1 - alpha) * z1 + alpha * z2
    return line


def slerp(z1: Float32, z2: Float32, alpha: Float32) -> Float32:
    """The great arc from z₁ to z₂, lengths interpolated with the angle's weights; linear where no arc is defined.

    No arc is defined where an end is zero or the ends point the same or the opposite way.

    Shapes:  z1, z2 (*latent_shape); alpha (m,) -> (m, *latent_shape)
    Source:  Shoemake 1985, "Animating rotation with quaternion curves", section 3.3
    """
    first, second = z1.astype(np.float64), z2.astype(np.float64)
    lengths = np.linalg.norm(first) * np.linalg.norm(second)
    if lengths == 0:
        return linear(z1, z2, alpha)
    omega = np.arccos(np.clip(np.vdot(first, second) / lengths, -1.0, 1.0))
    if np.sin(omega) < 1e-6:
        return linear(z1, z2, alpha)
    weights = alpha.astype(np.float64).reshape(-1, *(1,) * z1.ndim)
    arc = (np.sin((1 - weights) * omega) * first + np.sin(weights * omega) * second) / np.sin(omega)
    arc[alpha == 0], arc[alpha == 1] = first, second
    with np.errstate(over="ignore"):  # between ends that point nearly opposite ways it leads far out
        rounded: Float32 = arc.astype(np.float32)
    return rounded


def path(points: Float32, *, steps: int, method: Literal["linear", "slerp"], loop: bool) -> Float32:
    """A path through all points, both ends included; a loop leads back without repeating the first. Between ends near
    the largest float32 it may lead to infinity.

    Shapes:  points (p, *latent_shape), p ≥ 2 -> (path_rows(p, …), *latent_shape)
    """
    between = slerp if method == "slerp" else linear
    alpha = (np.arange(steps - 1) / (steps - 1)).astype(np.float32)
    targets = np.roll(points, -1, axis=0) if loop else points[1:]
    legs = [between(start, end, alpha) for start, end in zip(points, targets, strict=False)]
    return np.concatenate(legs if loop else [*legs, points[-1:]])


def path_rows(points: int, *, steps: int, loop: bool) -> int:
    """How many rows `path` will have, known before anything is computed."""
    return points * (steps - 1) if loop else (points - 1) * (steps - 1) + 1


def traverse(start: Float32, *, dims: Sequence[int], span: float, steps: int) -> Float32:
    """One latent, one dimension of it at a time replaced by values from -span to span.

    Shapes:  start (*latent_shape), dims are indices into it flattened -> (len(dims) · steps, *latent_shape)
    """
    # Halves of whole numbers: symmetric about 0, which stands in the middle of an odd number of steps.
    values = span * (np.arange(1 - steps, steps, 2) / (steps - 1))
    z = np.tile(start.reshape(-1), (len(dims), steps, 1))
    for line, dim in zip(z, dims, strict=True):
        line[:, dim] = values
    return z.reshape(-1, *start.shape)


def normals_cost_us(values: int) -> float:
    """What so many normals cost: ten rounds of fixed overhead, then the values."""
    return 70 + 0.15 * values


def path_cost_us(values: int) -> float:
    """What a path of so many values costs."""
    return 20 + 0.03 * values


def scores_cost_us(values: int) -> float:
    """What `kl` or `importance_weighted_bound` of so many values costs."""
    return 15 + 0.005 * values
