"""ONNX files that others wrote: read with checks, and cut to the part that gives the tensors a bundle needs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    checker,
    helper,
    inliner,
    numpy_helper,
    shape_inference,
    version_converter,
)
from onnx.external_data_helper import load_external_data_for_tensor

from export.frozen import CannotImport
from export.graphs import LARGEST_BYTES
from service.graph_file import IR_VERSION_MAX, OPSET_MAX

# The oldest opset in which Clip, Slice and Transpose take bytes and bounds as a bundle's graphs need them.
_OLDEST_OPSET = 13
# Of a graph without functions; large diffusion models have some thousands.
_MOST_NODES = 1_000_000
# Not FLOAT16: what such a graph gives depends on where an engine rounds, so nothing can be proven equal to it.
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
_FEWER_BITS = {code: name for name, code in TensorProto.DataType.items() if "FLOAT" in name and code not in _FLOATS}
_QUANTISED = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    }
)
_STANDARD = ("", "ai.onnx")
_NOISE = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


def read(path: Path) -> ModelProto:
    """An ONNX file, its external data brought in and its functions inlined; nothing of it has been run.

    Raises:  CannotImport if it is missing or not whole, its weights are not all there, or its nodes are out of order
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise CannotImport(f"{path}: has {size} bytes, expected an ONNX file of at most {LARGEST_BYTES}")
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise CannotImport(f"{path}: {error.strerror or error}, expected an ONNX file") from error
    except DecodeError as error:
        raise CannotImport(f"{path}: not readable as ONNX, expected a whole file ({error})") from error
    if not model.graph.node or not model.graph.output:
        raise CannotImport(f"{path}: holds no graph, expected an ONNX file with nodes and outputs")
    if not all(isinstance(text, str) for text in _texts(model)):
        raise CannotImport(f"{path}: holds a name that is not UTF-8, expected a whole ONNX file")
    _bring_in_weights(model, path)
    if model.functions:
        _require_small_inlined(model, path)
        try:
            model = inliner.inline_local_functions(model)
        except Exception as error:  # its C++ throws what it likes
            raise CannotImport(f"{path}: its functions cannot be inlined ({one_line(error)})") from error
    for spelt in (*model.opset_import, *_with_inner(model.graph.node)):
        spelt.domain = "" if spelt.domain in _STANDARD else spelt.domain
    # Old files list weights as inputs that a caller may replace.
    weights = {tensor.name for tensor in model.graph.initializer}
    keep(model.graph.input, [value for value in model.graph.input if value.name not in weights])
    _require_order(model.graph, path)
    return model


def cut(model: ModelProto, outputs: Sequence[str], *, path: Path) -> ModelProto:
    """The part of a graph that gives these outputs: one input, standard operators that compute in float32 or wider, no
    noise, an opset of bundles.

    Raises:  CannotImport if that part is anything else, or its weights are not finite
    """
    values = {value.name: value for value in model.graph.output}
    for name in outputs:
        if name not in values:
            raise CannotImport(f"{path}: gives no {name}, its outputs are {', '.join(values)}")
        _require_quiet(model.graph, name, path)
    nodes, names = _feeding(model.graph, outputs)
    part = ModelProto(ir_version=IR_VERSION_MAX, opset_import=model.opset_import)
    part.graph.name = model.graph.name
    part.graph.node.extend(nodes)
    part.graph.input.extend(value for value in model.graph.input if value.name in names)
    part.graph.output.extend(values[name] for name in outputs)
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in names)
    if len(part.graph.input) != 1:
        found = ", ".join(value.name for value in part.graph.input) or "none"
        raise CannotImport(f"{path}: {' and '.join(outputs)} need the inputs {found}, expected one input")
    _require_standard(part, path)
    _require_exact(part, path)
    _require_finite(part, path)
    return _in_bundles_opset(part, path)


def types(model: ModelProto) -> dict[str, ValueInfoProto]:
    """Type and shape, as far as they follow from a valid graph, of its tensors by name."""
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    return {value.name: value for values in (graph.value_info, graph.input, graph.output) for value in values}


def axes(value: ValueInfoProto, *, path: Path) -> tuple[int | None, ...]:
    """The axes of an input or output, None where free.

    Raises:  CannotImport if the file does not say how many there are
    """
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        raise CannotImport(f"{path}: {value.name} has no shape, expected one, with a name for each free axis")
    # Some writers say -1 or 0 of a free axis, in place of nothing or a name; without a value it is 0 too.
    return tuple(axis.dim_value if axis.dim_value > 0 else None for axis in tensor.shape.dim)


def require_floats(value: ValueInfoProto, *, path: Path) -> None:
    """Nothing, if a tensor is of numbers that float32 stands for.

    Raises:  CannotImport if it is of others
    """
    dtype = value.type.tensor_type.elem_type
    if dtype not in _FLOATS:
        found = TensorProto.DataType.Name(dtype)
        raise CannotImport(f"{path}: {value.name} is of type {found}, expected FLOAT or DOUBLE")


def producer(model: ModelProto) -> str:
    """What wrote a file, as it says itself."""
    return " ".join(part for part in (model.producer_name, model.producer_version) if part) or "unknown producer"


def within(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and all graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for part in _subgraphs(node):
            yield from within(part)


def read_by(node: NodeProto) -> set[str]:
    """The tensors that a node reads, those that graphs inside it take from outside included."""
    graphs = [graph for part in _subgraphs(node) for graph in within(part)]
    inner = {name for graph in graphs for part in graph.node for name in part.input}
    given = {value.name for graph in graphs for value in graph.output}
    return {*node.input, *inner, *given} - {""}


def keep(field: Any, values: Sequence[Any]) -> None:
    """A repeated field of a message, made to hold these values and no others."""
    kept = list(values)
    del field[:]
    field.extend(kept)


def one_line(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _require_small_inlined(model: ModelProto, path: Path) -> None:
    """Nothing, if a graph stays small when its functions are put in the place of their calls: one that calls another
    twice, and so on, doubles at each step.
    """
    functions = {(one.domain, one.name, one.overload): list(_with_inner(one.node)) for one in model.functions}
    calls = {key: set(map(_called, nodes)) & functions.keys() for key, nodes in functions.items()}
    sizes: dict[tuple[str, str, str], tuple[int, int]] = {}
    try:
        for key in TopologicalSorter(calls).static_order():
            sizes[key] = _size_of(functions[key], sizes)
    except CycleError as error:
        raise CannotImport(f"{path}: a function of it calls itself, expected none that does") from error
    nodes, size = _size_of(list(_with_inner(model.graph.node)), sizes)
    if nodes > _MOST_NODES or size > LARGEST_BYTES:
        expected = f"{_MOST_NODES:,} nodes and {LARGEST_BYTES} bytes"
        raise CannotImport(f"{path}: its functions stand for more than {expected}, expected at most that")


def _called(node: NodeProto) -> tuple[str, str, str]:
    return node.domain, node.op_type, node.overload


def _size_of(nodes: Sequence[NodeProto], sizes: Mapping[tuple[str, str, str], tuple[int, int]]) -> tuple[int, int]:
    """Nodes and bytes of nodes, those in the place of calls included, as far as they are not too many anyway."""
    found = [sizes.get(_called(node)) or (1, node.ByteSize()) for node in nodes]
    number, size = (sum(each) for each in zip(*found, strict=True)) if found else (0, 0)
    return min(number, _MOST_NODES + 1), min(size, LARGEST_BYTES + 1)


def _texts(message: Message) -> Iterator[str | bytes]:
    """Every text in a message: bytes where it is none, which the parser lets through."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            yield from [value] if isinstance(value, str | bytes) else value
        elif field.type == field.TYPE_MESSAGE:
            for part in [value] if isinstance(value, Message) else value:
                yield from _texts(part)


def _bring_in_weights(model: ModelProto, path: Path) -> None:
    """The bytes of every tensor, inside the model, as many as it claims."""
    if any(graph.sparse_initializer for graph in within(model.graph)):
        raise CannotImport(f"{path}: has sparse weights, expected dense ones")
    claimed = 0
    for tensor in _tensors(model):
        size = 0 if tensor.data_type == TensorProto.STRING else _itemsize(tensor, path)
        claimed += math.prod(tensor.dims) * size
        if claimed > LARGEST_BYTES:
            raise CannotImport(f"{path}: claims {claimed} bytes of weights, expected at most {LARGEST_BYTES}")
        try:
            if tensor.data_location == TensorProto.EXTERNAL:
                load_external_data_for_tensor(tensor, str(path.parent))
                tensor.ClearField("data_location")  # the bytes of a graph that was never elsewhere
            checker.check_tensor(tensor)
            numpy_helper.to_array(tensor)  # the check lets more bytes pass than there should be
        except (OSError, ValueError, checker.ValidationError) as error:
            raise CannotImport(f"{path}: {tensor.name or 'a constant'}: {one_line(error)}") from error


def _require_order(graph: GraphProto, path: Path) -> None:
    """Nothing, if every node stands after those that give what it reads: what feeds an output is found that way."""
    later = {name for node in graph.node for name in node.output}
    for node in graph.node:
        if to_come := later.intersection(node.input) - {""}:
            told = f"{_told(node)} stands before what gives {min(to_come)}"
            raise CannotImport(f"{path}: {told}, expected nodes in the order in which they compute")
        later -= set(node.output)


def _itemsize(tensor: TensorProto, path: Path) -> int:
    try:
        return helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError as error:
        raise CannotImport(
            f"{path}: {tensor.name} is of the unknown type {tensor.data_type}, expected numbers"
        ) from error


def _feeding(graph: GraphProto, outputs: Sequence[str]) -> tuple[list[NodeProto], set[str]]:
    """The nodes that lead to these tensors, in order, and the name of every tensor on the way."""
    names = set(outputs)
    nodes = []
    for node in reversed(graph.node):
        if names.intersection(node.output):
            nodes.append(node)
            names |= read_by(node)
    return nodes[::-1], names


def _require_quiet(graph: GraphProto, output: str, path: Path) -> None:
    for node in _with_inner(_feeding(graph, [output])[0]):
        if node.op_type in _NOISE and not node.domain:
            raise CannotImport(f"{path}: {output} depends on {_told(node)}, expected an output without noise")


def _require_standard(model: ModelProto, path: Path) -> None:
    for node in _with_inner(model.graph.node):
        if node.domain:
            raise CannotImport(f"{path}: {_told(node)} is of the domain {node.domain}, expected standard operators")
    keep(model.opset_import, [entry for entry in model.opset_import if not entry.domain])


def _require_exact(model: ModelProto, path: Path) -> None:
    """Nothing, if a graph computes in float32 or wider, as far as its constants, casts and operators tell."""
    nodes = list(_with_inner(model.graph.node))
    held = [(tensor.name, tensor.data_type) for graph in within(model.graph) for tensor in graph.initializer]
    made = [(_told(node), dtype) for node in nodes for attribute in node.attribute for dtype in _dtypes(attribute)]
    for told, dtype in (*held, *made):
        if dtype in _FEWER_BITS:
            raise CannotImport(f"{path}: {told} is of type {_FEWER_BITS[dtype]}, expected FLOAT or DOUBLE")
    for node in nodes:
        if node.op_type in _QUANTISED:
            raise CannotImport(f"{path}: {_told(node)} is of a quantised graph, expected the graph that it was made of")


def _dtypes(attribute: AttributeProto) -> list[int]:
    """The types of numbers that an attribute asks for or holds."""
    if attribute.name in ("to", "dtype", "output_datatype"):
        return [attribute.i]
    return [attribute.t.data_type] if attribute.type == AttributeProto.TENSOR else []


def _require_finite(model: ModelProto, path: Path) -> None:
    for tensor in _tensors(model):
        values = numpy_helper.to_array(tensor)
        # One infinity alone is a bound, as of Clip; among others it is a weight.
        if values.dtype.kind == "f" and not np.isfinite(values).all() and (values.size > 1 or np.isnan(values).any()):
            raise CannotImport(f"{path}: {tensor.name or 'a constant'} holds NaN or infinity, expected finite weights")


def _in_bundles_opset(model: ModelProto, path: Path) -> ModelProto:
    """The graph in its own opset, if bundles may have that one, or else in theirs."""
    found = next((entry.version for entry in model.opset_import if not entry.domain), 1)
    if _OLDEST_OPSET <= found <= OPSET_MAX:
        return model
    try:
        return version_converter.convert_version(model, OPSET_MAX)
    except Exception as error:  # the converter's C++ throws what it likes
        expected = f"expected {_OLDEST_OPSET} to {OPSET_MAX} or what can be rewritten"
        raise CannotImport(f"{path}: its opset is {found}, {expected} ({one_line(error)})") from error


def _with_inner(nodes: Sequence[NodeProto]) -> Iterator[NodeProto]:
    """Nodes, and those of the graphs inside them."""
    for node in nodes:
        yield node
        for part in _subgraphs(node):
            yield from _with_inner(part.node)


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every constant of a model, wherever it is kept."""
    nodes = [*_with_inner(model.graph.node), *(node for function in model.functions for node in function.node)]
    for graph in within(model.graph):
        yield from graph.initializer
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors


def _told(node: NodeProto) -> str:
    return f"{node.op_type} ({node.name or ', '.join(node.output)})"
