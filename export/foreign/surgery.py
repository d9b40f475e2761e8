"""Edits of ONNX graphs: rows made free, tensors split, and everything wired to a bundle's inputs and outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, checker, helper, numpy_helper, shape_inference

from export.foreign.files import axes, keep, one_line, read_by, types, within
from export.frozen import CannotImport
from export.graphs import plain
from service.graph_file import IR_VERSION_MAX

# Keeps a source's names apart from those that `rewired` adds.
_PREFIX = "source."


@dataclass(frozen=True, eq=False)
class Step:
    """One node between a bundle's tensor and a source's: an operator, its inputs after the first, its attributes."""

    op: str
    constants: tuple[NDArray[Any], ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Port:
    """An input or output of a bundle's graph, the source's tensor that it stands for, and the steps from the one to
    the other, in the direction of the data. `dtype` is ONNX's number of it; a free axis is a name.
    """

    name: str
    tensor: str
    dtype: int
    axes: tuple[int | str, ...]
    steps: Sequence[Step] = ()


def cast(found: int, wanted: int) -> list[Step]:
    """The step from one type of numbers to another, if they are two."""
    return [] if found == wanted else [Step("Cast", attributes={"to": wanted})]


def split(model: ModelProto, *, channels: int, names: tuple[str, str]) -> ModelProto:
    """A graph that gives two halves of its one output, under names of their own.

    Shapes:  output (n, 2 * channels, ...) -> each name (n, channels, ...)
    """
    divided = _copy(model)
    (whole,) = divided.graph.output
    for name, start in zip(names, (0, channels), strict=True):
        start_end_axis = tuple(np.array([place], np.int64) for place in (start, start + channels, 1))
        divided.graph.node.extend(_chain(divided.graph, whole.name, name, [Step("Slice", start_end_axis)]))
    dtype = whole.type.tensor_type.elem_type
    keep(divided.graph.output, [helper.make_tensor_value_info(name, dtype, None) for name in names])
    return divided


def with_free_rows(model: ModelProto, *, path: Path) -> ModelProto:
    """A graph of a fixed number of rows that takes any, as far as only its Reshape nodes stood against it.

    A Reshape of the input's rows that gives so many rows again is told -1 for them, and for its other axes what they
    are in the fixed graph.
    """
    free = _copy(model)
    (image,) = model.graph.input
    n, *_ = axes(image, path=path)
    known = {name: _lengths(value) for name, value in types(model).items()}
    of_rows = {image.name}
    for node in free.graph.node:
        if of_rows.isdisjoint(read_by(node)):
            continue
        of_rows.update(node.output)
        rows, *others = known.get(node.output[0]) or [0]
        if node.op_type == "Reshape" and rows == n:
            shape = numpy_helper.from_array(np.array([-1, *others], np.int64), f"{node.output[0]}.shape")
            free.graph.initializer.append(shape)
            node.input[1] = shape.name
    return free


def rewired(model: ModelProto, *, takes: Port, gives: Sequence[Port], path: Path) -> bytes:
    """A graph between a bundle's inputs and outputs, as a file of a bundle.

    Raises:  CannotImport if what comes out is not valid ONNX
    """
    wired = _copy(model)
    graph = wired.graph
    _prefix(graph)
    before = _chain(graph, takes.name, _PREFIX + takes.tensor, takes.steps)
    after = [node for port in gives for node in _chain(graph, _PREFIX + port.tensor, port.name, port.steps)]
    keep(graph.node, [*before, *graph.node, *after])
    keep(graph.input, [helper.make_tensor_value_info(takes.name, takes.dtype, takes.axes)])
    keep(graph.output, [helper.make_tensor_value_info(port.name, port.dtype, port.axes) for port in gives])
    wired.ir_version = IR_VERSION_MAX
    try:
        return plain(wired)
    except (checker.ValidationError, shape_inference.InferenceError) as error:
        raise CannotImport(f"{path}: not valid ONNX ({one_line(error)})") from error


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def _lengths(value: ValueInfoProto) -> list[int]:
    """The axes of a tensor if all are known, else none."""
    axes_ = value.type.tensor_type.shape.dim
    known = [int(axis.dim_value) for axis in axes_ if axis.HasField("dim_value")]
    return known if len(known) == len(axes_) else []


def _chain(graph: GraphProto, start: str, end: str, steps: Sequence[Step]) -> list[NodeProto]:
    """Nodes that lead from one tensor to another; their constants become weights of the graph."""
    nodes = []
    names = [start, *(f"{start}->{end}.{number}" for number in range(1, len(steps))), end]
    for step, given, taken in zip(steps or [Step("Identity")], names, names[1:], strict=False):
        constants = [f"{taken}.{step.op}.{place}" for place in range(len(step.constants))]
        graph.initializer.extend(map(numpy_helper.from_array, step.constants, constants))
        nodes.append(helper.make_node(step.op, [given, *constants], [taken], **step.attributes))
    return nodes


def _prefix(graph: GraphProto) -> None:
    """Names of their own for all tensors, inside nodes too."""
    for part in within(graph):
        for named in (*part.input, *part.output, *part.initializer):
            named.name = _PREFIX + named.name
        for node in part.node:
            for names in (node.input, node.output):
                names[:] = [_PREFIX + name if name else name for name in names]
        del part.value_info[:]
