"""Frozen outputs against the source's outputs, measured with the engine that will serve."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle import Difference, Parity, Probe, Tolerance
from service.engine import Graph

# Odd and even, one and many: what a batch may be.
BATCH_ROWS = (1, 2, 7, 64)

Float32 = NDArray[np.float32]
Uint8 = NDArray[np.uint8]


class NotEqual(Exception):
    """The graphs differ from their source by more than the tolerance; the sentence names the largest difference."""


@dataclass(frozen=True)
class Source:
    """The model as it was before it was frozen, on arrays.

    Shapes:  encode image (n, h, w, c) -> mu, logvar (n, *latent_shape); decode z -> image
    """

    encode: Callable[[Uint8], tuple[Float32, Float32]]
    decode: Callable[[Float32], Uint8]


def measure(source: Source, encoder: Graph, decoder: Graph, *, pictures: Uint8, seed: int = 0) -> Parity:
    """Largest and mean difference on real pictures, random pictures, their latents and latents of the prior.

    Shapes:  pictures (n, h, w, c)
    Units:   mu and logvar absolute, pictures in grey levels
    """
    generator = np.random.default_rng(seed)
    noise = generator.integers(0, 256, pictures.shape, dtype=np.uint8)
    everything = np.concatenate((pictures, noise))
    differences: dict[str, list[NDArray[np.float64]]] = {"mu": [], "logvar": [], "image": []}
    for rows in BATCH_ROWS:
        for image in _batches(everything, rows):
            mu, logvar = source.encode(image)
            found_mu, found_logvar = encoder.run(image)
            differences["mu"].append(_apart(found_mu, mu))
            differences["logvar"].append(_apart(found_logvar, logvar))
            for z in (mu, generator.standard_normal(mu.shape, dtype=np.float32)):
                (found_image,) = decoder.run(z)
                differences["image"].append(_apart(found_image, source.decode(z)))
    measured = {name: _difference(np.concatenate(parts)) for name, parts in differences.items()}
    return Parity(**measured, batch_rows=BATCH_ROWS, pictures=len(everything))


def require(parity: Parity, tolerance: Tolerance) -> None:
    """Nothing, if every difference is within the tolerance.

    Raises:  NotEqual that names what differs most, by how much, and what was allowed
    """
    excesses = {
        name: getattr(parity, name).max / max(getattr(tolerance, name), 1e-12) for name in ("mu", "logvar", "image")
    }
    # `not <=`, so that NaN is an excess too.
    over = [name for name, excess in excesses.items() if not excess <= 1]
    if over:
        listed = ", ".join(
            f"{name} by {getattr(parity, name).max:.3g} where {getattr(tolerance, name):g} is allowed" for name in over
        )
        raise NotEqual(f"the graphs differ from their source: {listed}; nothing was written")


def probe_of(source: Source, pictures: Uint8, *, seed: int = 0) -> Probe:
    """A few inputs and what the source makes of them.

    Shapes:  pictures (n, h, w, c)
    """
    mu, logvar = source.encode(pictures)
    z = np.random.default_rng(seed).standard_normal(mu.shape, dtype=np.float32)
    return Probe(image=pictures, mu=mu, logvar=logvar, z=z, decoded=source.decode(z))


def _batches(images: Uint8, rows: int) -> Iterator[Uint8]:
    """Whole batches, enough of them to see every picture once at the larger sizes, and a few at the small ones."""
    for start in range(0, min(len(images), 64 * rows), rows):
        yield np.ascontiguousarray(images[start : start + rows])


def _apart(found: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
    return np.abs(found.astype(np.float64) - expected.astype(np.float64)).ravel()


def _difference(values: NDArray[np.float64]) -> Difference:
    return Difference(max=float(values.max()), mean=float(values.mean()))
