"""Weights that pythae's process and a test fill the same networks with, so that none of them need be kept in a file."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

LATENT_DIM = 3
ROWS = 2


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.generic]]:
    """An array for each key, of a size that keeps signals alive through a deep network."""
    generator = np.random.default_rng(0)
    return {key: _array(key, shape, generator) for key, shape in sorted(shapes.items())}


def images(x_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Pictures (n, h, w, c) for a network that takes (c, h, w)."""
    channels, height, width = x_shape
    return np.random.default_rng(1).integers(0, 256, (ROWS, height, width, channels), dtype=np.uint8)


def latents(latent_dim: int) -> NDArray[np.float32]:
    """Latents (n, latent_dim)."""
    return 4 * np.random.default_rng(2).random((ROWS, latent_dim), dtype=np.float32) - 2


def _array(key: str, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.generic]:
    if key.endswith("num_batches_tracked"):
        return np.array(7)
    uniform = generator.random(shape, dtype=np.float32)
    if len(shape) == 1:  # of norms and biases
        return 0.5 + uniform if key.endswith(("running_var", "weight")) else 0.2 * (uniform - np.float32(0.5))
    fan = shape[1] if len(shape) == 2 else max(shape[:2]) * math.prod(shape[2:])
    return 5 / np.float32(math.sqrt(fan)) * (uniform - np.float32(0.5))
