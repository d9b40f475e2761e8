"""What an ONNX file holds, told from its bytes before anything runs it, and whether a bundle may hold it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from service import protobuf
from service.files import BadBundle
from service.protobuf import Malformed, Message

OPSET_MAX, IR_VERSION_MAX = 20, 10

_NOISE = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_ONNX_DOMAINS = frozenset({"", "ai.onnx"})  # two names of one
_RANK_MAX = 64

# The part of onnx.proto that is looked at: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_TABLE: protobuf.Table = {
    "Model": {1: ("ir_version", "int"), 7: ("graph", "Graph"), 8: ("opset", "*Opset"), 25: ("function", "*Function")},
    "Opset": {1: ("domain", "text"), 2: ("version", "int")},
    "Graph": {1: ("node", "*Node"), 5: ("initializer", "*Tensor"), 15: ("sparse", "*bytes")},
    "Node": {1: ("input", "*text"), 4: ("type", "text"), 5: ("attribute", "*Attribute"), 7: ("domain", "text")},
    "Attribute": {
        5: ("tensor", "Tensor"),
        6: ("graph", "Graph"),
        10: ("tensors", "*Tensor"),
        11: ("graphs", "*Graph"),
        22: ("sparse", "bytes"),
        23: ("sparse_tensors", "*bytes"),
    },
    "Function": {
        1: ("name", "text"),
        7: ("node", "*Node"),
        9: ("opset", "*Opset"),
        10: ("domain", "text"),
        11: ("attribute", "*Attribute"),
    },
    "Tensor": {
        1: ("dims", "*int"),
        2: ("type", "int32"),
        4: ("float_data", "*fixed"),
        5: ("int32_data", "*count"),
        6: ("string_data", "*bytes"),
        7: ("int64_data", "*count"),
        8: ("name", "text"),
        9: ("raw_data", "bytes"),
        10: ("double_data", "*fixed"),
        11: ("uint64_data", "*count"),
        13: ("external_data", "*Entry"),
        14: ("data_location", "int32"),
    },
    "Entry": {1: ("key", "text"), 2: ("value", "text")},
}
_EXTERNAL = 1  # of TensorProto.DataLocation
# Of TensorProto.DataType, and bits of one element by it; a string has no size.
_STRING, _BOOL = 8, 9
_BITS = {
    **dict.fromkeys((21, 22), 4),
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    15: 128,
}
_FLOATS: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 10: np.dtype("<f2"), 11: np.dtype("<f8")}


@dataclass(frozen=True)
class External:
    """Where the bytes of a tensor lie that another file holds."""

    tensor: str
    location: str
    offset: int
    length: int


@dataclass(frozen=True)
class GraphFile:
    """What an ONNX file says of itself: operators as (domain, type), ONNX's own domain being empty, and which of them
    draw random numbers, those of inner graphs and local functions too.
    """

    ir_version: int
    opset: int
    operators: frozenset[tuple[str, str]]
    noise: frozenset[str]
    external: tuple[External, ...]


class _Unsound(Exception):
    """ONNX with a tensor that is not what it says: what was found, what was expected."""


def checked(content: bytes, *, path: Path, external: Mapping[str, bytes]) -> GraphFile:
    """What a graph holds, if a bundle may hold it: no operator but ONNX's own, no noise, no bytes from elsewhere than
    the files of `external`.

    Raises:  BadBundle with one sentence
    """
    told = read(content, path=path)
    for name, found, most in (("opset", told.opset, OPSET_MAX), ("IR version", told.ir_version, IR_VERSION_MAX)):
        if not 1 <= found <= most:
            raise BadBundle(f"{path}: {name} is {found}, expected 1 to {most}")
    foreign = sorted(f"{domain}.{kind}" for domain, kind in told.operators if domain)
    if foreign:
        raise BadBundle(f"{path}: has the operator {_shown(foreign[0])}, expected those of ONNX alone")
    if told.noise:
        raise BadBundle(f"{path}: draws random numbers ({', '.join(sorted(told.noise))}), expected no noise in graphs")
    for tensor in told.external:
        place = f"{path}: tensor {_shown(tensor.tensor)} lies"
        if tensor.location not in external:
            expected = " or ".join(("the graph itself", *sorted(external)))
            raise BadBundle(f"{place} in {_shown(tensor.location)}, expected it in {expected}")
        size, end = len(external[tensor.location]), tensor.offset + tensor.length
        if end > size:
            raise BadBundle(f"{place} in bytes {tensor.offset} to {end} of {tensor.location}, which has {size}")
    return told


def read(content: bytes, *, path: Path) -> GraphFile:
    """What an ONNX file says of itself.

    Raises:  BadBundle if it is malformed, or a tensor has fewer bytes than its shape needs or holds NaN
    """
    try:
        return _told(protobuf.message(memoryview(content), "Model", _TABLE))
    except Malformed as error:
        raise BadBundle(f"{path}: {error}, expected ONNX") from error
    except _Unsound as error:
        raise BadBundle(f"{path}: {error}") from error


def _told(model: Message) -> GraphFile:
    if "graph" not in model:
        raise Malformed("holds no graph")
    functions = model.get("function", [])
    walk = _Walk()
    walk.graph(model["graph"][0], outermost=True)
    for function in functions:
        walk.function(function)
    imports = [opset for part in (model, *functions) for opset in part.get("opset", ())]
    versions = [_one(opset, "version", 0) for opset in imports if _domain(opset) == ""]
    return GraphFile(
        ir_version=_one(model, "ir_version", 0),
        opset=max(versions, default=0),
        operators=frozenset(walk.operators),
        noise=frozenset(walk.noise),
        external=tuple(walk.external),
    )


class _Walk:
    """All that is to be told of a graph and of everything inside it, gathered on the way through."""

    def __init__(self) -> None:
        self.operators: set[tuple[str, str]] = set()
        self.noise: set[str] = set()
        self.external: list[External] = []

    def graph(self, graph: Message, *, outermost: bool) -> None:
        _require_dense(graph)
        for tensor in graph.get("initializer", ()):
            self.tensor(tensor, outermost=outermost)
        false = {_one(tensor, "name", "") for tensor in graph.get("initializer", ()) if _is_false(tensor)}
        for node in graph.get("node", ()):
            self.node(node, false=false)

    def function(self, function: Message) -> None:
        self.operators.add((_domain(function), _one(function, "name", "")))
        for node in function.get("node", ()):
            self.node(node, false=set())
        for attribute in function.get("attribute", ()):
            self.attribute(attribute)

    def node(self, node: Message, *, false: set[str]) -> None:
        domain, kind = _domain(node), _one(node, "type", "")
        self.operators.add((domain, kind))
        # Dropout draws in training alone, which its third input says; without one it does not.
        is_training = kind == "Dropout" and not set(node.get("input", ())[2:3]) <= {"", *false}
        if domain == "" and (kind in _NOISE or is_training):
            self.noise.add(kind)
        for attribute in node.get("attribute", ()):
            self.attribute(attribute)

    def attribute(self, attribute: Message) -> None:
        _require_dense(attribute)
        for graph in (*attribute.get("graph", ()), *attribute.get("graphs", ())):
            self.graph(graph, outermost=False)
        for tensor in (*attribute.get("tensor", ()), *attribute.get("tensors", ())):
            self.tensor(tensor, outermost=False)

    def tensor(self, tensor: Message, *, outermost: bool) -> None:
        if _one(tensor, "data_location", 0) != _EXTERNAL:
            _require_numbers(tensor)
            elements = _elements_inside(tensor)
        else:
            if not outermost:  # onnxruntime would look for it on the disk
                raise _Unsound(f"tensor {_label(tensor)}, inside of a node, lies elsewhere, expected it in the graph")
            self.external.append(external := _external(tensor))
            elements = external.length * 8 // _bits(tensor)
        dims = tensor.get("dims", [])
        if len(dims) > _RANK_MAX or min(dims, default=0) < 0 or prod(dims) > elements:
            shown = " x ".join(map(str, dims[:8]))
            raise _Unsound(f"tensor {_label(tensor)} claims {shown} elements, its bytes hold {elements}")


def _require_dense(message: Message) -> None:
    """A sparse tensor of a few bytes may claim any size once it is dense."""
    if "sparse" in message or "sparse_tensors" in message:
        raise _Unsound("holds a sparse tensor, expected dense ones")


def _require_numbers(tensor: Message) -> None:
    dtype = _FLOATS.get(_one(tensor, "type", 0))
    if dtype is None:
        return
    for part in (*tensor.get("raw_data", ()), *tensor.get("float_data", ()), *tensor.get("double_data", ())):
        numbers = np.frombuffer(part[: len(part) // dtype.itemsize * dtype.itemsize], dtype)
        with np.errstate(invalid="ignore"):  # of signalling NaNs
            if numbers.size and np.isnan(numbers.min()):  # which NaN passes through, without another array as large
                raise _Unsound(f"tensor {_label(tensor)} holds NaN, expected numbers")


def _elements_inside(tensor: Message) -> int:
    """How many elements the bytes of a tensor are enough for."""
    if "external_data" in tensor:
        raise _Unsound(f"tensor {_label(tensor)} names another file but lies in the graph, expected one of both")
    if _one(tensor, "type", 0) == _STRING:
        return len(tensor.get("string_data", ()))
    bits = _bits(tensor)
    if "raw_data" in tensor:
        return len(tensor["raw_data"][0]) * 8 // bits
    fixed = sum(len(part) for part in (*tensor.get("float_data", ()), *tensor.get("double_data", ())))
    counted = sum((*tensor.get("int32_data", ()), *tensor.get("int64_data", ()), *tensor.get("uint64_data", ())))
    return int(fixed * 8 // bits + counted * max(1, 8 // bits))


def _external(tensor: Message) -> External:
    entries = [(_one(entry, "key", ""), _one(entry, "value", "")) for entry in tensor.get("external_data", ())]
    found = dict(entries)
    numbers = [found.get(key, "") for key in ("offset", "length")]
    names = sorted(key for key, _ in entries)
    if names != ["length", "location", "offset"] or not all(re.fullmatch("[0-9]{1,18}", text) for text in numbers):
        raise _Unsound(
            f"tensor {_label(tensor)} lies elsewhere by {_shown(entries)}, expected location, offset and length"
        )
    offset, length = map(int, numbers)
    return External(_one(tensor, "name", ""), found["location"], offset, length)


def _is_false(tensor: Message) -> bool:
    return _one(tensor, "type", 0) == _BOOL and bytes(_one(tensor, "raw_data", b"")) == b"\0"


def _bits(tensor: Message) -> int:
    kind = _one(tensor, "type", 0)
    if kind not in _BITS:
        raise _Unsound(f"tensor {_label(tensor)} has the type {kind}, expected one of ONNX's")
    return _BITS[kind]


def _domain(message: Message) -> str:
    domain: str = _one(message, "domain", "")
    return "" if domain in _ONNX_DOMAINS else domain


def _label(tensor: Message) -> str:
    return _shown(_one(tensor, "name", ""))


def _shown(found: object) -> str:
    """Whatever a file says, cut and in one line."""
    return repr(found)[:200]


def _one(message: Message, name: str, default: Any) -> Any:
    return message[name][0] if name in message else default
