"""The draw of z that some encoders hold, mean + exp(logvar / 2) · noise: found in a graph, and shown to be one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, checker, numpy_helper

from export.foreign import files
from export.foreign.original import Original
from export.frozen import CannotImport

# Absolute for values of z up to 1, relative above.
_TOLERANCE = 1e-4
_NOISE = ("RandomNormal", "RandomNormalLike")
_TRANSPARENT = ("Cast", "Identity")


@dataclass(frozen=True)
class Draw:
    """The tensors of a draw: z = mean + exp(logvar / 2) * noise."""

    z: str
    mean: str
    logvar: str
    noise: str


def found(model: ModelProto, z: str, *, path: Path) -> Draw | None:
    """The draw that gives this tensor, if the graph spells it so.

    Raises:  CannotImport if the graph is not valid ONNX
    """
    try:
        checker.check_model(model)
    except checker.ValidationError as error:
        raise CannotImport(f"{path}: not valid ONNX ({files.one_line(error)})") from error
    nodes = _Nodes(model.graph)
    for mean, spread in nodes.operands(z, "Add"):
        for sigma, noise in nodes.operands(spread, "Mul"):
            drawn = nodes.maker(noise)
            if drawn is None or not _is_standard_normal(drawn):
                continue
            for half in nodes.operands(sigma, "Exp"):
                for logvar, factor in nodes.operands(half[0], "Mul"):
                    if nodes.is_half(factor):
                        return Draw(z, mean, logvar, noise=drawn.output[0])
    return None


def exposed(model: ModelProto, draw: Draw, *, path: Path) -> ModelProto:
    """A graph that gives the mean and logvar of its draw beside what it gave.

    Raises:  CannotImport if the graph does not tell what they are
    """
    showing = ModelProto()
    showing.CopyFrom(model)
    values = files.types(model)
    for name in (draw.mean, draw.logvar):
        if name not in values:
            raise CannotImport(f"{path}: {name} has no type that follows from the graph, expected ONNX's own operators")
        showing.graph.output.append(values[name])
    return showing


def require(model: ModelProto, draw: Draw, *, takes: str, x: NDArray[Any], path: Path) -> None:
    """Nothing, if an exposed graph gives what its draw says when known noise stands in the place of its own.

    Shapes:  x, rows as the graph takes them
    Raises:  CannotImport if it gives something else
    """
    (mean,) = Original(path, takes=takes, gives=[draw.mean], content=model.SerializeToString()).run(x)
    eps = np.random.default_rng(0).standard_normal(mean.shape).astype(mean.dtype)
    known = ModelProto()
    known.CopyFrom(model)
    files.keep(known.graph.node, [node for node in known.graph.node if draw.noise not in node.output])
    known.graph.initializer.append(numpy_helper.from_array(eps, draw.noise))
    gives = [draw.z, draw.mean, draw.logvar]
    arrays = Original(path, takes=takes, gives=gives, content=known.SerializeToString()).run(x)
    z, mean, logvar = (array.astype(np.float64) for array in arrays)
    expected = mean + np.exp(logvar / 2) * eps
    if (np.abs(z - expected) > _TOLERANCE * np.maximum(1, np.abs(expected))).any():
        apart = (
            f"{draw.z} differs from {draw.mean} + exp({draw.logvar} / 2) · noise by {np.abs(z - expected).max():.3g}"
        )
        raise CannotImport(f"{path}: with known noise {apart}, expected a draw from that posterior")


def _is_standard_normal(node: NodeProto) -> bool:
    stated = {attribute.name: attribute.f for attribute in node.attribute}
    return node.op_type in _NOISE and (stated.get("mean", 0), stated.get("scale", 1)) == (0, 1)


class _Nodes:
    """The nodes of a graph by what they give."""

    def __init__(self, graph: GraphProto) -> None:
        self._makers = {name: node for node in graph.node for name in node.output}
        self._weights = {tensor.name: tensor for tensor in graph.initializer}

    def maker(self, name: str) -> NodeProto | None:
        """The node that gives a tensor, or the one before if it only hands on."""
        node = self._makers.get(name)
        while node and node.op_type in _TRANSPARENT:
            node = self._makers.get(node.input[0])
        return node

    def operands(self, name: str, op: str) -> Iterator[tuple[str, ...]]:
        """What an operator takes to give a tensor, both ways round; nothing if another gives it."""
        node = self.maker(name)
        if node and node.op_type == op:
            yield tuple(node.input)
            yield tuple(reversed(node.input))

    def is_half(self, name: str) -> bool:
        """Whether a tensor is the constant 1/2."""
        node = self._makers.get(name)
        tensor = self._weights.get(name)
        if node and node.op_type == "Constant":
            tensor = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
        return tensor is not None and bool((numpy_helper.to_array(tensor) == 0.5).all())
