"""How pictures lie among others: density and coverage of generated ones, and the nearest training picture of each.

Pictures are compared pixel by pixel: flattened, in [0, 1], by Euclidean distance; those with a side above `SIDE_MAX`
are first averaged over areas until the longer one has it. No learnt features: none fit every kind of data, and pixels
need no download.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

# Which neighbour's distance is the radius of a real picture's ball: the choice of Naeem et al.
NEAREST = 5
SIDE_MAX = 32
# Density of real pictures among others, on average.
EXPECTED_DENSITY = 1.0

_WHITE = 255
# Numbers of a chunk of pictures or of distances, 8 bytes each.
_CHUNK_VALUES = 2**23


@dataclass(frozen=True)
class Coverage:
    """How generated pictures lie among held-out real ones.

    Source:  Naeem et al. 2020, section 3, arXiv:2002.09797
    """

    density: float
    """Balls around real pictures that a generated one lies in, over `nearest`: fidelity. Real pictures would have 1 on
    average; above 1 is possible."""
    coverage: float
    """Share of real pictures with a generated one in their ball: diversity, 0 to 1."""
    expected_coverage: float
    """What coverage would be, on average, if the generated pictures were real ones too."""
    nearest: int
    """The ball of a real picture reaches to the neighbour of this rank among the other real ones."""
    n_generated: int
    """Generated pictures."""
    n_real: int
    """Real pictures."""


@dataclass(frozen=True, eq=False)
class Balls:
    """Generated pictures in the balls of real ones, counted from either side.

    Shapes:  held (n_generated,) int64, balls that each lies in; covered (n_real,) bool, whether one lies in its ball
    """

    held: Tensor
    covered: Tensor


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest other picture of each picture.

    Shapes:  distances, indices (n,), both in the order of the pictures
    Units:   Euclidean distance, where a pixel from black to white counts 1
    """

    distances: NDArray[np.float64]
    indices: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CopyCheck:
    """The nearest training picture of each sample and, as the yardstick, of each held-out picture."""

    samples: Neighbours
    held_out: Neighbours


def coverage(generated: NDArray[np.uint8], real: NDArray[np.uint8], *, nearest: int = NEAREST) -> Coverage:
    """Density and coverage of generated pictures among held-out real ones.

    Balls are closed, so that a real picture with several exact copies can be covered by another copy.

    Shapes:  generated (n_generated, h, w, c), real (n_real, h, w, c) uint8
    Raises:  ValueError if the sizes differ, or there are too few real pictures
    Source:  Naeem et al. 2020, section 3, arXiv:2002.09797
    """
    _same_size(generated, real)
    return coverage_of_features(_features(generated), _features(real), nearest=nearest)


def coverage_of_features(generated: Tensor, real: Tensor, *, nearest: int = NEAREST) -> Coverage:
    """Density and coverage of generated pictures among real ones, each a row of features.

    Shapes:  generated (n_generated, features), real (n_real, features) float64
    Raises:  ValueError if there are too few real pictures
    Source:  Naeem et al. 2020, section 3, arXiv:2002.09797
    """
    found = balls(generated, real, nearest=nearest)
    return Coverage(
        density=int(found.held.sum()) / (nearest * len(generated)),
        coverage=int(found.covered.sum()) / len(real),
        expected_coverage=expected_coverage(n_generated=len(generated), n_real=len(real), nearest=nearest),
        nearest=nearest,
        n_generated=len(generated),
        n_real=len(real),
    )


def balls(generated: Tensor, real: Tensor, *, nearest: int = NEAREST) -> Balls:
    """Which generated pictures lie near which real ones: what density and coverage are means of.

    Shapes:  generated (n_generated, features), real (n_real, features) float64
    Raises:  ValueError if there are too few real pictures
    Source:  Naeem et al. 2020, section 3, arXiv:2002.09797
    """
    if len(real) <= nearest:
        raise ValueError(f"real: got {len(real)} pictures, expected more than {nearest}")
    held = torch.zeros(len(generated), dtype=torch.int64)
    covered = []
    for rows in _chunks(len(real), width=max(len(real), len(generated))):
        among_real = _squared_distances(real[rows], real)
        # The nearest is the picture itself, at distance 0.
        radius = among_real.topk(nearest + 1, dim=1, largest=False).values[:, -1:]
        inside = _squared_distances(real[rows], generated) <= radius
        held += inside.sum(dim=0)
        covered.append(inside.any(dim=1))
    return Balls(held=held, covered=torch.cat(covered))


def expected_coverage(*, n_generated: int, n_real: int, nearest: int) -> float:
    """The mean coverage of pictures from the very distribution of the real ones.

    A ball is empty if the `nearest` nearest of all other pictures are real; i = 1 … nearest:
    1 - prod (n_real - i) / (n_real + n_generated - i).

    Source:  Naeem et al. 2020, lemma 2, arXiv:2002.09797
    """
    empty = math.prod((n_real - i) / (n_real + n_generated - i) for i in range(1, nearest + 1))
    return 1 - empty


def check_copies(samples: NDArray[np.uint8], *, held_out: NDArray[np.uint8], training: NDArray[np.uint8]) -> CopyCheck:
    """The nearest training picture of each sample and of each held-out picture.

    Shapes:  samples, held_out, training (n, h, w, c) uint8, any n each
    Raises:  ValueError if the sizes differ
    """
    return CopyCheck(samples=neighbours(samples, training), held_out=neighbours(held_out, training))


def neighbours(images: NDArray[np.uint8], among: NDArray[np.uint8]) -> Neighbours:
    """The nearest picture to each image among others, the first of equally near ones.

    Shapes:  images (n, h, w, c), among (m, h, w, c) uint8 -> (n,)
    Raises:  ValueError if the sizes differ
    """
    _same_size(images, among)
    queries = _features(images)
    best = torch.full((len(images),), torch.inf, dtype=torch.float64)
    indices = torch.zeros(len(images), dtype=torch.int64)
    for rows in _chunks(len(among), width=max(len(images), among[0].size)):
        distances, found = _squared_distances(queries, _features(among[rows])).min(dim=1)
        nearer = distances < best
        best = torch.where(nearer, distances, best)
        indices = torch.where(nearer, found + rows.start, indices)
    return Neighbours(distances=(best.sqrt() / _WHITE).numpy(), indices=indices.numpy())


def _features(images: NDArray[np.uint8]) -> Tensor:
    """Pictures as rows of grey levels: (n, h, w, c) uint8 -> (n, dims) float64, no side above `SIDE_MAX`.

    Whole grey levels in float64 make the distances below exact, so that a copy is found at distance 0.
    """
    n, *image_shape = images.shape
    if max(image_shape[:2]) <= SIDE_MAX:
        return torch.from_numpy(images.reshape(n, -1).astype(np.float64))
    chunks = [_averaged(images[rows]) for rows in _chunks(n, width=math.prod(image_shape))]
    return torch.cat(chunks)


def _averaged(images: NDArray[np.uint8]) -> Tensor:
    """(n, h, w, c) uint8 -> (n, dims) float64, the longer side averaged down to `SIDE_MAX`, the other in proportion."""
    height, width = images.shape[1:3]
    scale = SIDE_MAX / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    x = torch.from_numpy(images.astype(np.float64)).permute(0, 3, 1, 2)
    return functional.adaptive_avg_pool2d(x, size).flatten(1)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(n, dims), (m, dims) float64 -> (n, m), by one matrix product."""
    products = a @ b.T
    lengths = a.square().sum(1)[:, None] + b.square().sum(1)[None, :]
    return (lengths - 2 * products).clamp_min(0)


def _chunks(n: int, *, width: int) -> Iterator[slice]:
    """Slices of n rows, each of a bounded number of values."""
    rows = max(1, _CHUNK_VALUES // width)
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))


def _same_size(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> None:
    if images.shape[1:] != others.shape[1:]:
        raise ValueError(f"pictures: got {images.shape[1:]} and {others.shape[1:]}, expected one size")
