"""Frozen outputs against the source's outputs, measured with the engine that will serve."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.frozen import CannotImport, Float32, Graphs, Source, Uint8
from export.pictures import Real, natural, sample
from export.runs import Shape, shapes
from service import differences
from service.bundle import Probe
from service.engine import signatures
from service.graph import Graph, RowShape
from service.machine import available_cores
from service.manifest import DECODER, ENCODER, SCORER, Difference, ImageSpec, Parity, Tolerance

# Runs of one shape go on until there were so many, or they have seen so many pictures or pixels.
_RUNS = 32
_PICTURES = 128
_PIXELS = 100_000
# The probe is run whenever a bundle is read, so it is no larger than needed.
_PROBE_ROWS = 4
_PROBE_PIXELS = 2**16


class NotEqual(Exception):
    """The graphs differ from their source by more than the tolerance: a sentence, and a table of what differs."""


@dataclass(frozen=True)
class Candidate:
    """The graphs of a bundle to be, in the engine that will serve them."""

    encoder: Graph
    decoder: Graph
    scorer: Graph | None

    @property
    def opset(self) -> int:
        """The highest version of ONNX's operators that one of them asks for."""
        return max(graph.opset for graph in (self.encoder, self.decoder, self.scorer) if graph)

    @classmethod
    def of(cls, graphs: Graphs, *, image: ImageSpec, latent_shape: RowShape, family: str) -> "Candidate":
        """The graphs, loaded on the CPU.

        Raises:  BadBundle if onnxruntime refuses one, or it takes or gives something else than bundles do
        """
        expected = signatures(image.shape, latent_shape, family=family)

        def load(name: str, content: bytes) -> Graph:
            return Graph(content, expected[name], path=Path(name), device="cpu", threads=available_cores())

        return cls(
            load(ENCODER, graphs.encoder),
            load(DECODER, graphs.decoder),
            None if graphs.scorer is None else load(SCORER, graphs.scorer),
        )


@dataclass(frozen=True)
class Measured:
    """How far the graphs are from their source.

    `differences` holds mu, image, and logvar and log_likelihood where the model has them; a difference that is not a
    number is one. `shapes` are rows, height and width of the runs; `real` of the `pictures` were real.

    Units:  as Tolerance says
    """

    differences: Mapping[str, tuple[float, float]]
    shapes: tuple[Shape, ...]
    pictures: int
    real: int

    def parity(self) -> Parity:
        """What a manifest says of it."""
        found = {name: Difference(max=most, mean=mean) for name, (most, mean) in self.differences.items()}
        return Parity(**{"logvar": None} | found, shapes=self.shapes, pictures=self.pictures, real_pictures=self.real)


def measure(
    source: Source,
    candidate: Candidate,
    *,
    image: ImageSpec,
    real: Real,
    scale_head: str | None,
    max_run_pixels: int,
) -> Measured:
    """Largest and mean difference on natural pictures in turn with noise, and on latents of theirs or of the prior.

    Raises:  CannotImport if the source gives numbers that are not finite, or arrays of another shape than the graphs,
             BadBundle if a graph fails
    """
    generator = np.random.default_rng(0)
    tallies: defaultdict[str, _Tally] = defaultdict(_Tally)
    means: list[Float32] = []
    seen = seen_real = 0
    measured = shapes(image, max_run_pixels=max_run_pixels)
    for size, runs in groupby(measured, key=lambda shape: shape[1:]):
        batches = {rows: _number_of_runs(rows, pixels=math.prod(size)) for rows, *_ in runs}
        most = min(_PICTURES, max(rows * number for rows, number in batches.items()))
        pictures = sample(real, (*size, image.channels), n=most, seed=0)
        seen, seen_real = seen + len(pictures.images), seen_real + pictures.real
        for batch in _batches(pictures.images, batches):
            posterior = source.encode(batch)
            means.append(posterior[0].ravel())
            for name, apart in _compared(
                source, candidate, batch, posterior=posterior, scale_head=scale_head, generator=generator
            ):
                tallies[name].add(apart)
    found = {name: (tally.max, tally.mean) for name, tally in tallies.items()}
    unit = differences.unit_of_mu(np.concatenate(means))
    found["mu"] = tallies["mu"].max / unit, tallies["mu"].mean / unit
    return Measured(found, shapes=measured, pictures=seen, real=seen_real)


def require(measured: Measured, tolerance: Tolerance) -> None:
    """Nothing, if every difference is within the tolerance.

    Raises:  NotEqual with a table of every difference and what was allowed
    """
    allowed = {name: getattr(tolerance, name) for name in measured.differences}
    # `not <=`, so that what is not a number is an excess too.
    over = [name for name, (most, _) in measured.differences.items() if not most <= allowed[name]]
    if over:
        lines = [f"  {'':<14}  {'largest':>9}  {'mean':>9}  {'allowed':>9}"]
        for name, (most, mean) in measured.differences.items():
            mark = "  over" if name in over else ""
            lines.append(f"  {name:<14}  {most:>9.3g}  {mean:>9.3g}  {allowed[name]:>9g}{mark}")
        verdict = f"the graphs differ from their source in {', '.join(over)}; nothing was written"
        raise NotEqual("\n".join([verdict, *lines]))


def require_numbers(name: str, given: NDArray[Any]) -> None:
    """Nothing, if a source gave finite numbers. Pictures are asked before they are rounded, as no byte is NaN.

    Raises:  CannotImport if one is NaN or infinite
    """
    if not np.isfinite(given).all():
        raise CannotImport(f"{name}: the source gives NaN or infinity, expected numbers")


def finite(x_hat: Tensor) -> Tensor:
    """Means of pixels as they came, looked at wherever torch runs a decoder: a graph cannot refuse.

    Raises:  CannotImport if one is NaN or infinite
    """
    if not torch.compiler.is_exporting():
        require_numbers("image", x_hat.numpy(force=True))
    return x_hat


def probe_of(source: Source, *, image: ImageSpec, real: Real) -> Probe:
    """A few inputs of the default size and what the source makes of them."""
    height, width, channels = image.default_shape
    rows = min(_PROBE_ROWS, max(1, _PROBE_PIXELS // (height * width)))
    images = natural(real, (height, width, channels), n=rows, seed=0)
    mu, logvar = source.encode(images)
    z = np.random.default_rng(0).standard_normal(mu.shape, dtype=np.float32)
    return Probe(
        image=images,
        mu=mu,
        logvar=logvar,
        z=z,
        decoded=source.decode(z),
        log_likelihood=source.score(images, z) if source.score else None,
    )


def _number_of_runs(rows: int, *, pixels: int) -> int:
    return max(1, min(_RUNS, _PICTURES // rows, _PIXELS // (rows * pixels)))


def _batches(images: Uint8, numbers: Mapping[int, int]) -> Iterator[Uint8]:
    """So many runs of each number of rows, from the first picture on; where there are too few, they come again."""
    for rows, number in numbers.items():
        for start in range(0, rows * number, rows):
            yield images[np.arange(start, start + rows) % len(images)]


def _compared(
    source: Source,
    candidate: Candidate,
    image: Uint8,
    *,
    posterior: tuple[Float32, Float32 | None],
    scale_head: str | None,
    generator: np.random.Generator,
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """What each output is and how far it is from the source's, for one run of every graph; mu's are absolute here."""
    mu, logvar = posterior
    encoded = candidate.encoder.tried(image)
    _require_comparable("mu", encoded[0], mu)
    yield "mu", differences.absolute(encoded[0], mu)
    if logvar is not None:
        _require_comparable("logvar", encoded[1], logvar)
        yield "logvar", differences.of_logvar(encoded[1], logvar, scale_head=scale_head)
    z = generator.standard_normal(mu.shape, dtype=np.float32)
    is_of_picture = generator.integers(0, 2, len(mu)).astype(bool)
    z[is_of_picture] = mu[is_of_picture]
    (decoded,), expected = candidate.decoder.tried(z), source.decode(z)
    _require_comparable("image", decoded, expected)
    yield "image", differences.absolute(decoded, expected)
    if candidate.scorer and source.score:
        (score,), expected_score = candidate.scorer.tried(image, z), source.score(image, z)
        _require_comparable("log_likelihood", score, expected_score)
        yield "log_likelihood", differences.of_sums(score, expected_score)


def _require_comparable(name: str, found: NDArray[Any], expected: NDArray[Any]) -> None:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        graph, source = (f"{array.dtype} {array.shape}" for array in (found, expected))
        raise CannotImport(f"{name}: the source gives {source}, the graph {graph}; expected equal types and shapes")
    require_numbers(name, expected)


class _Tally:
    """The largest and the mean of numbers that come in parts; both are not a number as soon as one of them is not."""

    def __init__(self) -> None:
        self.max = 0.0
        self._sum = 0.0
        self._count = 0

    def add(self, values: NDArray[np.float64]) -> None:
        self.max = float(np.maximum(self.max, values.max()))
        self._sum += float(values.sum())
        self._count += values.size

    @property
    def mean(self) -> float:
        return self._sum / self._count
