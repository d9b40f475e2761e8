"""Graphs whose convolutions and linear layers compute in 8-bit integers: QDQ, static, a scale per output channel."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from export.graphs import plain
from export.layers import LAYERS, ahead, are_layers, opened, prune
from export.shuffles import without_transposed

Feed = Mapping[str, NDArray[Any]]

# Layers, and what moves or clips their numbers without making new ones, which integers pass through as they are.
_QUANTISED = [*LAYERS, "DepthToSpace", "MaxPool", "Relu", "Reshape", "Resize", "Slice", "Transpose"]
_OPTIONS = {
    "MatMulConstBOnly": True,
    # Sums of a linear layer leave it in float: they are what mu is made of.
    "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
}
_LARGEST_WEIGHT = 127


@dataclass(frozen=True)
class Calibrated:
    """A graph ready to be quantised, and what its tensors ranged over."""

    model: ModelProto
    ranges: TensorsData

    @property
    def layers(self) -> int:
        """Layers on the longest way through it."""
        graph = self.model.graph
        return max(after + is_layer for after, is_layer in zip(ahead(graph), are_layers(graph), strict=True))


def calibrated(graph: bytes, feeds: Sequence[Feed]) -> Calibrated:
    """A graph with constants folded and no transposed convolutions, run once on every feed."""
    model = opened(graph)
    without_transposed(model.graph)
    prune(model.graph)
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model)
    with TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "model.onnx"
        onnx.save_model(model, path)
        calibrator = create_calibrator(
            path,
            _QUANTISED,
            augmented_model_path=str(path.with_name("augmented.onnx")),
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(_Reader(feeds))
        return Calibrated(model, calibrator.compute_data())


def quantised(graph: Calibrated, *, float_layers: int) -> bytes:
    """The graph in integers, but for all from its last so many layers on."""
    model = ModelProto()
    model.CopyFrom(graph.model)
    kept = [
        node.name
        for node, following in zip(model.graph.node, ahead(model.graph), strict=True)
        if following < float_layers or _interpolates(node)
    ]
    _round_kernels(model.graph, kept=kept)
    with _quiet():
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=graph.ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=kept,
            op_types_to_quantize=_QUANTISED,
            extra_options=_OPTIONS,
        )
        quantizer.quantize_model()
    quantizer.model.topological_sort()
    model = quantizer.model.model
    del model.graph.value_info[:]
    return plain(model)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds one after another, as onnxruntime asks for them."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def _interpolates(node: NodeProto) -> bool:
    """Whether a node makes numbers between those that it takes; onnxruntime has not every mode of it in 8 bits."""
    modes = [attribute.s for attribute in node.attribute if attribute.name == "mode"]
    return node.op_type == "Resize" and modes not in ([], [b"nearest"])


def _round_kernels(graph: GraphProto, *, kept: Sequence[str]) -> None:
    """Put the weights of convolutions, but for those kept in float, on the grid that the quantiser will find, so that
    it leaves them as they are.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv" and node.name not in kept and node.input[1] in tensors:
            tensor = tensors[node.input[1]]
            tensor.CopyFrom(numpy_helper.from_array(rounded(numpy_helper.to_array(tensor)), tensor.name))


def rounded(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights of a convolution as multiples of a scale per output channel, every kernel's sum kept within half a scale.

    Rounding each weight to the nearest moves the sum of a kernel by several scales, which a picture's even areas
    multiply by the same grey over and over: the whole map is then too light or too dark. So that many weights of a
    kernel as make up for it are rounded the other way, those that lie nearest to the middle.

    Shapes:  (outputs, inputs, *size) -> the same
    """
    by_output = weights.reshape(len(weights), -1).astype(np.float64)
    largest = np.abs(by_output).max(axis=1, keepdims=True)
    scale = np.where(largest > 0, largest / _LARGEST_WEIGHT, 1)
    exact = (by_output / scale).reshape(-1, math.prod(weights.shape[2:]))
    nearest = np.rint(exact)
    missing = np.rint((exact - nearest).sum(axis=1, keepdims=True))
    # The largest weight of a channel is what its scale is told by: it stays.
    gain = np.where(np.abs(nearest) < _LARGEST_WEIGHT, (exact - nearest) * np.sign(missing), -np.inf)
    rank = np.argsort(np.argsort(-gain, axis=1, kind="stable"), axis=1, kind="stable")
    moved = nearest + np.sign(missing) * (rank < np.abs(missing))
    on_grid = np.clip(moved, -_LARGEST_WEIGHT, _LARGEST_WEIGHT).reshape(by_output.shape) * scale
    rounded_weights: NDArray[np.float32] = on_grid.reshape(weights.shape).astype(np.float32)
    return rounded_weights


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's notes, which speak of options that are chosen here."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
