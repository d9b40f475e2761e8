"""A model's graphs in fewer bits, float16 for GPUs and 8-bit integers for CPUs: made, and what they lose and gain."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto

from export.float16 import halved
from export.foreign.files import one_line
from export.frozen import Float32, Frozen, Graphs, Uint8
from export.int8 import Calibrated, calibrated, quantised
from export.runs import MAX_RUN_PIXELS
from export.scorer import without_copies
from model.machine import cpu_model
from model.parts import all_over
from service import differences
from service.bundle import Probe
from service.engine import signatures
from service.graph import Graph, resolve_device
from service.machine import available_cores
from service.manifest import DECODER, ENCODER, Difference, ImageSpec, ReducedTolerance, Variant

# What a variant may lose.
LEAST_PSNR_DB = 35.0
MOST_MU_IN_SIGMA = 0.1

# What layers are kept in float for: better than that, as the pictures to come are not those of the calibration.
_WANTED_PSNR_DB = LEAST_PSNR_DB + 5
_WANTED_MU_IN_SIGMA = 0.8 * MOST_MU_IN_SIGMA
_MOST_FLOAT_LAYERS = 3

_PICTURES = 256
_ROWS = 16
_LEAST_ROUNDS, _SECONDS = 7, 2.0
# Of equal pictures it is infinite, which JSON cannot say.
_HIGHEST_PSNR_DB = 99.0


class CannotReduce(Exception):
    """A variant that cannot be made, or that loses more than it may. One sentence: got and expected."""


@dataclass(frozen=True)
class Loss:
    """What a variant loses against its source: mu in units of the posterior's sigma, pictures by their PSNR."""

    mu_in_sigma: Difference
    psnr_db: float


def reduce(frozen: Frozen, *, precision: Literal["fp16", "int8"], calibration: Uint8 | None) -> Graphs:
    """Encoder and decoder in fewer bits; the scorer stays in float32.

    Shapes:  calibration (n, h, w, c), pictures like those to be served, which int8 fits its ranges to
    Raises:  CannotReduce if int8 gets no pictures, a node holds a graph of its own, or there is nothing to rewrite
    """
    graphs = frozen.graphs
    _require_flat(ENCODER, graphs.encoder)
    _require_flat(DECODER, graphs.decoder)
    learnt_from = np.empty(0, np.uint8) if calibration is None else calibration
    if precision == "int8" and not len(learnt_from):
        raise CannotReduce("int8: got no pictures, expected some like those to be served, to fit its ranges to")
    try:
        if precision == "fp16":
            reduced = replace(graphs, encoder=halved(graphs.encoder), decoder=halved(graphs.decoder))
        else:
            reduced = _in_int8(frozen, _some(learnt_from))
    except Exception as error:  # onnx's and onnxruntime's tools raise what they like of a stranger's graph
        raise CannotReduce(f"{precision}: cannot rewrite the graphs ({one_line(error)})") from error
    _require_reduced(reduced, precision=precision)
    return reduced


def measure_reduced(frozen: Frozen, reduced: Graphs, *, pictures: Uint8) -> Loss:
    """What a variant loses on pictures, on their latents, and on as many latents of the prior.

    Shapes:  pictures (n, h, w, c)
    Raises:  CannotReduce if it gives numbers that are not finite
    """
    images = _batches(_some(pictures), pixels=_pixels(pictures))
    mu, logvar = _posterior(frozen.source.encode(batch) for batch in images)
    encoder, decoder = _graph(frozen, ENCODER, reduced.encoder), _graph(frozen, DECODER, reduced.decoder)
    found = _joined(encoder.run(batch)[0] for batch in images)
    if not np.isfinite(found).all():
        raise CannotReduce("mu: got NaN or infinity in fewer bits, expected numbers; float16 ends at 65504")
    apart = differences.in_sigma(found, mu, logvar)
    z = _batches(_latents(mu, logvar), pixels=_pixels(pictures))
    decoded = _joined(frozen.source.decode(batch) for batch in z)
    psnr_db = differences.psnr_db(_joined(decoder.run(batch)[0] for batch in z), decoded)
    return Loss(Difference(max=apart.max(), mean=apart.mean()), min(psnr_db, _HIGHEST_PSNR_DB))


def require_small(loss: Loss, *, precision: str) -> None:
    """Nothing, if a variant loses no more than it may: 35 dB, and a tenth of a sigma on average.

    Raises:  CannotReduce that says how much it loses
    """
    if loss.psnr_db < LEAST_PSNR_DB:
        found = f"pictures are {loss.psnr_db:.1f} dB from the source's, expected {LEAST_PSNR_DB:g} dB or more"
    elif loss.mu_in_sigma.mean > MOST_MU_IN_SIGMA:
        mean = f"{loss.mu_in_sigma.mean:.3g} sigma"
        found = f"mu is {mean} from the source's on average, expected {MOST_MU_IN_SIGMA:g} sigma or less"
    else:
        return
    raise CannotReduce(f"{precision}: {found}; nothing was written, --force writes it")


def tolerance(frozen: Frozen, reduced: Graphs, *, loss: Loss, probe: Probe) -> ReducedTolerance:
    """What a variant keeps to wherever it is served: what it may lose, or with a margin what it loses here.

    With a margin, as processors add up floats in different orders, and integers that are rounded from them follow.
    """
    mu = _graph(frozen, ENCODER, reduced.encoder).run(probe.image)[0]
    (image,) = _graph(frozen, DECODER, reduced.decoder).run(probe.z)
    largest = max(loss.mu_in_sigma.max, float(differences.in_sigma(mu, probe.mu, probe.logvar).max()))
    lowest_db = min(loss.psnr_db, differences.psnr_db(image, probe.decoded))
    return ReducedTolerance(
        mu_in_sigma=round(max(MOST_MU_IN_SIGMA, 2 * largest), 3), psnr_db=round(min(LEAST_PSNR_DB, lowest_db - 3), 1)
    )


def variant(frozen: Frozen, reduced: Graphs) -> Variant:
    """What a variant gains against the same graphs in float32, on this machine and the device that `auto` takes.

    Raises:  BadEngine if that does not start, BadBundle if it has no room
    """
    device = resolve_device("auto")
    height, width, channels = _image(frozen).default_shape
    rows = _rows(height * width)
    image = np.random.default_rng(0).integers(0, 256, (rows, height, width, channels), dtype=np.uint8)
    z = np.zeros_like(_graph(frozen, ENCODER, frozen.graphs.encoder).run(image)[0])
    runs = {}
    for precision, graphs in (("fp32", frozen.graphs), ("reduced", reduced)):
        for name, content, given in ((ENCODER, graphs.encoder, image), (DECODER, graphs.decoder, z)):
            graph = _graph(frozen, name, content, device=device)
            graph.tried(given)
            runs[name, precision] = partial(graph.run, given)
    return Variant(
        encoder_speedup=speedup(runs[ENCODER, "fp32"], runs[ENCODER, "reduced"]),
        decoder_speedup=speedup(runs[DECODER, "fp32"], runs[DECODER, "reduced"]),
        batch_rows=rows,
        size_ratio=_size_bytes(reduced) / _size_bytes(frozen.graphs),
        machine=f"{cpu_model()}, {available_cores()} cores, {device}, onnxruntime {ort.__version__}",
    )


def _size_bytes(graphs: Graphs) -> int:
    """What the graphs take in a bundle. A scorer shares its decoder's weights there, as long as both hold the same."""
    scorer = b"" if graphs.scorer is None else without_copies(graphs.scorer, decoder=graphs.decoder)
    return len(graphs.encoder) + len(graphs.decoder) + len(scorer)


def speedup(slow: Callable[[], object], fast: Callable[[], object]) -> float:
    """How many times as fast one call is as another: the median over rounds that make both, one after the other."""
    slow(), fast()
    ratios: list[float] = []
    began = time.perf_counter()
    while len(ratios) < _LEAST_ROUNDS or time.perf_counter() - began < _SECONDS:
        ratios.append(_seconds(slow) / _seconds(fast))
    return median(ratios)


def _require_flat(name: str, content: bytes) -> None:
    """Nothing, if no node of a graph, as If and Loop do, holds another."""
    for node in onnx.load_model_from_string(content).graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise CannotReduce(f"{name}: has a graph inside its {node.op_type}, expected none in fewer bits")


def _require_reduced(graphs: Graphs, *, precision: str) -> None:
    """Nothing, if some weights are in fewer bits: a graph in float64, say, is left as it is."""
    stored = {
        tensor.data_type
        for content in (graphs.encoder, graphs.decoder)
        for tensor in onnx.load_model_from_string(content).graph.initializer
    }
    if stored.isdisjoint({TensorProto.FLOAT16, TensorProto.INT8}):
        raise CannotReduce(f"{precision}: got graphs without layers in float32, expected some to rewrite")


def _in_int8(frozen: Frozen, pictures: Uint8) -> Graphs:
    """Graphs in integers, with as few of their last layers in float as make the loss small."""
    graphs, pixels = frozen.graphs, _pixels(pictures)
    images = _batches(pictures, pixels=pixels)
    encoder = _graph(frozen, ENCODER, graphs.encoder)
    mu, logvar = _posterior(encoder.run(batch) for batch in images)
    z = _batches(_latents(mu, logvar), pixels=pixels)
    decoder = _graph(frozen, DECODER, graphs.decoder)
    decoded = _joined(decoder.run(batch)[0] for batch in z)

    def excess_in_sigma(content: bytes) -> float:
        graph = _graph(frozen, ENCODER, content)
        found = _joined(graph.run(batch)[0] for batch in images)
        return float(differences.in_sigma(found, mu, logvar).mean()) - _WANTED_MU_IN_SIGMA

    def missing_db(content: bytes) -> float:
        graph = _graph(frozen, DECODER, content)
        return _WANTED_PSNR_DB - differences.psnr_db(_joined(graph.run(batch)[0] for batch in z), decoded)

    return replace(
        graphs,
        encoder=_quantised(calibrated(graphs.encoder, [{"image": batch} for batch in images]), excess_in_sigma),
        decoder=_quantised(calibrated(graphs.decoder, [{"z": batch} for batch in z]), missing_db),
    )


def _quantised(graph: Calibrated, shortfall: Callable[[bytes], float]) -> bytes:
    """The graph with the fewest layers in float that falls short of nothing, or the one that falls least short."""
    tried = []
    for float_layers in range(max(1, min(_MOST_FLOAT_LAYERS + 1, graph.layers))):
        content = quantised(graph, float_layers=float_layers)
        tried.append((shortfall(content), float_layers, content))
        if tried[-1][0] <= 0:
            return content
    return min(tried)[-1]


def _graph(frozen: Frozen, name: str, content: bytes, *, device: Literal["cpu", "cuda"] = "cpu") -> Graph:
    described = frozen.described
    expected = signatures(_image(frozen).shape, described["latent_shape"], family=described["family"])
    return Graph(content, expected[name], path=Path(name), device=device, threads=available_cores())


def _image(frozen: Frozen) -> ImageSpec:
    image: ImageSpec = frozen.described["image"]
    return image


def _some(pictures: Uint8) -> Uint8:
    """As many pictures as are enough, from all over the set, as one may be ordered by what is on them."""
    most = max(1, min(_PICTURES, MAX_RUN_PIXELS // _pixels(pictures)))
    chosen: Uint8 = pictures[all_over(len(pictures), most=most)]
    return chosen


def _pixels(pictures: Uint8) -> int:
    return math.prod(pictures.shape[1:3])


def _rows(pixels: int) -> int:
    return max(1, min(_ROWS, MAX_RUN_PIXELS // pixels))


def _batches(rows: NDArray[Any], *, pixels: int) -> list[NDArray[Any]]:
    return [rows[start : start + _rows(pixels)] for start in range(0, len(rows), _rows(pixels))]


def _posterior(parts: Iterable[Sequence[Float32 | None]]) -> tuple[Float32, Float32 | None]:
    """mu and logvar of all batches; an autoencoder has no logvar."""
    mu, *logvar = zip(*([array for array in part if array is not None] for part in parts), strict=True)
    return _joined(mu), _joined(logvar[0]) if logvar else None


def _latents(mu: Float32, logvar: Float32 | None) -> Float32:
    """Latents of pictures and as many of the prior, which an autoencoder has not."""
    if logvar is None:
        return mu
    return np.concatenate((mu, np.random.default_rng(0).standard_normal(mu.shape, dtype=np.float32)))


def _joined(parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(list(parts))


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
