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
from service.bundle import BadBundle, Probe
from service.engine import signatures
from service.graph import Arrays, Device, Graph, resolve_device
from service.machine import BadEngine, available_cores
from service.manifest import DECODER, ENCODER, Difference, ReducedTolerance, Variant

# What a variant may lose.
LEAST_PSNR_DB = 35.0
MOST_MU_IN_SIGMA = 0.1
MOST_LOGVAR = 0.2  # a tenth of sigma, which is exp(logvar / 2)

# What layers are kept in float for: better than that, as the pictures to come are not those of the calibration.
_WANTED_PSNR_DB = LEAST_PSNR_DB + 5
_WANTED_MU_IN_SIGMA = 0.8 * MOST_MU_IN_SIGMA
_WANTED_LOGVAR = 0.8 * MOST_LOGVAR
_MOST_FLOAT_LAYERS = 3

# Of pictures that a variant is fitted to, and of those that it is measured on; of large ones, fewer.
_PICTURES = 256
_PIXELS = 2_000_000
_ROWS = 16
_LEAST_ROUNDS, _SECONDS = 7, 2.0
# Of equal pictures it is infinite, which JSON cannot say.
_HIGHEST_PSNR_DB = 99.0


class CannotReduce(Exception):
    """A variant that cannot be made, or that loses more than it may. One sentence: got and expected."""


@dataclass(frozen=True)
class Loss:
    """What a variant loses against its source: mu in units of the posterior's sigma, or of a hundredth of mu's spread
    where that is larger, logvar absolute, pictures by their PSNR. An autoencoder has no logvar.
    """

    mu_in_sigma: Difference
    psnr_db: float
    logvar: Difference | None = None


def reduce(
    frozen: Frozen,
    *,
    precision: Literal["fp16", "int8"],
    calibration: Uint8 | None,
    max_run_pixels: int = MAX_RUN_PIXELS,
) -> Graphs:
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
            reduced = _in_int8(frozen, _some(learnt_from), max_run_pixels=max_run_pixels)
    except Exception as error:  # onnx's and onnxruntime's tools raise what they like of a stranger's graph
        raise CannotReduce(f"{precision}: cannot rewrite the graphs ({one_line(error)})") from error
    _require_reduced(reduced, precision=precision)
    return reduced


def measure_reduced(frozen: Frozen, reduced: Graphs, *, pictures: Uint8, max_run_pixels: int = MAX_RUN_PIXELS) -> Loss:
    """What a variant loses on pictures, on their latents, and on as many latents of the prior.

    Shapes:  pictures (n, h, w, c)
    Raises:  CannotReduce if it fails or gives numbers that are not finite
    """
    at_once = _rows(_pixels(pictures), max_run_pixels=max_run_pixels)
    images = _batches(_some(pictures), at_once=at_once)
    mu, logvar = _posterior(frozen.source.encode(batch) for batch in images)
    encoder, decoder = _graph(frozen, ENCODER, reduced.encoder), _graph(frozen, DECODER, reduced.decoder)
    found_mu, found_logvar = _posterior(_given(encoder, batch) for batch in images)
    for name, found in (("mu", found_mu), ("logvar", found_logvar)):
        if found is not None and not np.isfinite(found).all():
            raise CannotReduce(f"{name}: got NaN or infinity in fewer bits, expected numbers; float16 ends at 65504")
    z = _batches(_latents(mu, logvar), at_once=at_once)
    decoded = _joined(frozen.source.decode(batch) for batch in z)
    psnr_db = differences.psnr_db(_joined(_given(decoder, batch)[0] for batch in z), decoded)
    return Loss(
        _difference(differences.in_sigma(found_mu, mu, logvar)),
        min(psnr_db, _HIGHEST_PSNR_DB),
        logvar=_of_logvar(frozen, found_logvar, logvar),
    )


def require_small(loss: Loss, *, precision: str) -> None:
    """Nothing, if a variant loses no more than it may: 35 dB, and on average a tenth of sigma, in mu and in itself.

    Raises:  CannotReduce that says how much it loses
    """
    if loss.psnr_db < LEAST_PSNR_DB:
        found = f"pictures are {loss.psnr_db:.1f} dB from the source's, expected {LEAST_PSNR_DB:g} dB or more"
    elif loss.mu_in_sigma.mean > MOST_MU_IN_SIGMA:
        mean = f"{loss.mu_in_sigma.mean:.3g} sigma"
        found = f"mu is {mean} from the source's on average, expected {MOST_MU_IN_SIGMA:g} sigma or less"
    elif loss.logvar and loss.logvar.mean > MOST_LOGVAR:
        found = f"logvar is {loss.logvar.mean:.3g} from the source's on average, expected {MOST_LOGVAR:g} or less"
    else:
        return
    raise CannotReduce(f"{precision}: {found}; nothing was written, --force writes it")


def tolerance(frozen: Frozen, reduced: Graphs, *, loss: Loss, probe: Probe) -> ReducedTolerance:
    """What a variant keeps to wherever it is served: what it may lose, or with a margin what it loses here.

    With a margin, as processors add up floats in different orders, and integers that are rounded from them follow.

    Raises:  BadBundle if a graph fails on the probe
    """
    mu, logvar = _posterior([_graph(frozen, ENCODER, reduced.encoder).tried(probe.image)])
    (image,) = _graph(frozen, DECODER, reduced.decoder).tried(probe.z)
    of_mu = (loss.mu_in_sigma, _difference(differences.in_sigma(mu, probe.mu, probe.logvar)))
    of_logvar = [one for one in (loss.logvar, _of_logvar(frozen, logvar, probe.logvar)) if one]
    lowest_db = min(loss.psnr_db, differences.psnr_db(image, probe.decoded))
    return ReducedTolerance(
        mu_in_sigma=_with_margin(*(one.max for one in of_mu), least=MOST_MU_IN_SIGMA),
        mu_in_sigma_mean=_with_margin(*(one.mean for one in of_mu), least=MOST_MU_IN_SIGMA),
        logvar=_with_margin(*(one.max for one in of_logvar), least=MOST_LOGVAR) if of_logvar else None,
        logvar_mean=_with_margin(*(one.mean for one in of_logvar), least=MOST_LOGVAR) if of_logvar else None,
        psnr_db=round(min(LEAST_PSNR_DB, lowest_db - 3), 1),
    )


def _with_margin(*measured: float, least: float) -> float:
    """Twice the largest that was measured, or what may be lost anyway."""
    return round(max(least, 2 * max(measured)), 3)


def gained(
    frozen: Frozen, reduced: Graphs, *, precision: Literal["fp16", "int8"], max_run_pixels: int = MAX_RUN_PIXELS
) -> Variant | None:
    """What a variant gains on the device that it is for: int8 on the CPU, fp16 on the one that `auto` takes, or else
    on the CPU. None if it runs on neither.
    """
    devices: tuple[Device, ...] = ("cpu",) if precision == "int8" else (resolve_device("auto"), "cpu")
    for device in dict.fromkeys(devices):
        try:
            return variant(frozen, reduced, device=device, max_run_pixels=max_run_pixels)
        except (BadEngine, BadBundle, MemoryError):  # a figure is no reason to lose what was made
            continue
    return None


def variant(
    frozen: Frozen, reduced: Graphs, *, device: Device = "auto", max_run_pixels: int = MAX_RUN_PIXELS
) -> Variant:
    """What a variant gains against the same graphs in float32, on a device of this machine.

    Raises:  BadEngine if that does not start, BadBundle if it has no room or fails
    """
    device = resolve_device(device)
    height, width, channels = frozen.described.image.default_shape
    rows = _rows(height * width, max_run_pixels=max_run_pixels)
    image = np.random.default_rng(0).integers(0, 256, (rows, height, width, channels), dtype=np.uint8)
    z = np.zeros_like(_graph(frozen, ENCODER, frozen.graphs.encoder).tried(image)[0])
    runs = {}
    for precision, graphs in (("fp32", frozen.graphs), ("reduced", reduced)):
        for name, content, given in ((ENCODER, graphs.encoder, image), (DECODER, graphs.decoder, z)):
            graph = _graph(frozen, name, content, device=device)
            graph.tried(given)
            runs[name, precision] = partial(graph.run, given)
    try:
        encoder, decoder = (speedup(runs[name, "fp32"], runs[name, "reduced"]) for name in (ENCODER, DECODER))
    except Exception as error:  # OutOfMemory, and onnxruntime's own, which share no public base
        raise BadBundle(f"fails on {rows} rows after the first ({one_line(error)})") from error
    return Variant(
        encoder_speedup=encoder,
        decoder_speedup=decoder,
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
    """Nothing, if some weights are in fewer bits, in float16 of each graph: one in float64, say, is left as it is."""
    stored = {
        name: {tensor.data_type for tensor in onnx.load_model_from_string(content).graph.initializer}
        for name, content in ((ENCODER, graphs.encoder), (DECODER, graphs.decoder))
    }
    if set.union(*stored.values()).isdisjoint({TensorProto.FLOAT16, TensorProto.INT8}):
        raise CannotReduce(f"{precision}: got graphs without layers in float32, expected some to rewrite")
    for name, types in stored.items():
        if precision == "fp16" and TensorProto.DOUBLE in types:
            raise CannotReduce(f"{precision}: {name}: got weights in float64, expected float32 to rewrite")


def _in_int8(frozen: Frozen, pictures: Uint8, *, max_run_pixels: int) -> Graphs:
    """Graphs in integers, with as few of their last layers in float as make the loss small."""
    graphs, at_once = frozen.graphs, _rows(_pixels(pictures), max_run_pixels=max_run_pixels)
    images = _batches(pictures, at_once=at_once)
    encoder = _graph(frozen, ENCODER, graphs.encoder)
    mu, logvar = _posterior(encoder.run(batch) for batch in images)
    z = _batches(_latents(mu, logvar), at_once=at_once)
    decoder = _graph(frozen, DECODER, graphs.decoder)
    decoded = _joined(decoder.run(batch)[0] for batch in z)

    def excess(content: bytes) -> float:
        graph = _graph(frozen, ENCODER, content)
        found_mu, found_logvar = _posterior(graph.run(batch) for batch in images)
        of_mu = float(differences.in_sigma(found_mu, mu, logvar).mean()) / _WANTED_MU_IN_SIGMA
        of_logvar = _of_logvar(frozen, found_logvar, logvar)
        return max(of_mu, of_logvar.mean / _WANTED_LOGVAR if of_logvar else 0) - 1

    def missing_db(content: bytes) -> float:
        graph = _graph(frozen, DECODER, content)
        return _WANTED_PSNR_DB - differences.psnr_db(_joined(graph.run(batch)[0] for batch in z), decoded)

    return replace(
        graphs,
        encoder=_quantised(calibrated(graphs.encoder, [{"image": batch} for batch in images]), excess),
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
    expected = signatures(described.image.shape, described.latent_shape, family=described.family)
    return Graph(content, expected[name], path=Path(name), device=device, threads=available_cores())


def _given(graph: Graph, rows: NDArray[Any]) -> Arrays:
    """What a graph gives in fewer bits, which may be no numbers.

    Raises:  CannotReduce if it fails
    """
    try:
        return graph.run(rows)
    except Exception as error:  # OutOfMemory, and onnxruntime's own, which share no public base
        raise CannotReduce(f"{graph.path}: fails on {len(rows)} rows in fewer bits ({one_line(error)})") from error


def _some(pictures: Uint8) -> Uint8:
    """As many pictures as are enough, from all over the set, as one may be ordered by what is on them."""
    most = max(1, min(_PICTURES, _PIXELS // _pixels(pictures)))
    chosen: Uint8 = pictures[all_over(len(pictures), most=most)]
    return chosen


def _pixels(pictures: Uint8) -> int:
    return math.prod(pictures.shape[1:3])


def _rows(pixels: int, *, max_run_pixels: int) -> int:
    """Rows of a run, of so many pixels each: one at least."""
    return max(1, min(_ROWS, max_run_pixels // pixels))


def _batches(rows: NDArray[Any], *, at_once: int) -> list[NDArray[Any]]:
    return [rows[start : start + at_once] for start in range(0, len(rows), at_once)]


def _posterior(parts: Iterable[Sequence[Float32 | None]]) -> tuple[Float32, Float32 | None]:
    """mu and logvar of all batches; an autoencoder has no logvar."""
    mu, *logvar = zip(*([array for array in part if array is not None] for part in parts), strict=True)
    return _joined(mu), _joined(logvar[0]) if logvar else None


def _of_logvar(frozen: Frozen, found: Float32 | None, expected: Float32 | None) -> Difference | None:
    if found is None or expected is None:
        return None
    return _difference(differences.of_logvar(found, expected, scale_head=frozen.described.scale_head))


def _difference(apart: differences.Float64) -> Difference:
    return Difference(max=apart.max(), mean=apart.mean())


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
