"""What is told of an ONNX file is what the onnx package finds in it, and what no bundle may hold is refused."""

import tracemalloc
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from service import graph_file
from service.bundle import BadBundle
from service.graph_file import External, GraphFile
from tests.service.broken import edited, outside, with_external
from tests.service.linear import linear

PATH = Path("some.onnx")
# Graphs of many converters and ages, which the onnx package brings for its own tests; and one of ours.
REAL = sorted((Path(onnx.__file__).parent / "backend" / "test" / "data").rglob("*.onnx"))
SHIPPED = sorted((Path(graph_file.__file__).parent / "bundles").rglob("*.onnx"))
NOISE = ["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"]


def told(model: ModelProto) -> GraphFile:
    return graph_file.read(model.SerializeToString(), path=PATH)


def refusal(content: bytes, external: dict[str, bytes] | None = None) -> str:
    """What follows the path in the one sentence of a graph that no bundle may hold."""
    with pytest.raises(BadBundle) as refused:
        graph_file.checked(content, path=PATH, external=external or {})
    sentence = str(refused.value)
    assert sentence.startswith("some.onnx: ")
    assert "\n" not in sentence
    return sentence.removeprefix("some.onnx: ")


def of(*nodes: NodeProto, initializers: Any = (), functions: Any = (), opset: int = 20) -> ModelProto:
    """A model of these nodes. Nothing runs it, so its graph takes and gives nothing."""
    graph = helper.make_graph(list(nodes), "graph", [], [], list(initializers))
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, functions=list(functions))


def inside(*nodes: NodeProto) -> NodeProto:
    """A node that holds these nodes in an inner graph."""
    return helper.make_node("If", ["c"], ["y"], then_branch=helper.make_graph(list(nodes), "then", [], []))


def in_function(*nodes: NodeProto, domain: str = "") -> onnx.FunctionProto:
    return helper.make_function(domain, "Mine", ["x"], ["y"], list(nodes), [helper.make_opsetid("", 20)])


# Told as the onnx package tells it


def operators(model: ModelProto) -> Iterator[tuple[str, str]]:
    """(domain, type) of every node and local function, by the onnx package's own reading."""
    for function in model.functions:
        yield function.domain, function.name
        yield from chain.from_iterable(map(of_node, function.node))
    yield from of_graph(model.graph)


def of_graph(graph: GraphProto) -> Iterator[tuple[str, str]]:
    for node in graph.node:
        yield from of_node(node)


def of_node(node: NodeProto) -> Iterator[tuple[str, str]]:
    yield "" if node.domain == "ai.onnx" else node.domain, node.op_type
    for attribute in node.attribute:
        one = [attribute.g] if attribute.HasField("g") else []
        yield from chain.from_iterable(map(of_graph, (*one, *attribute.graphs)))


@pytest.mark.parametrize("path", REAL + SHIPPED, ids=lambda path: path.parent.name)
def test_real_graphs_are_told_as_the_onnx_package_tells_them(path: Path) -> None:
    model = onnx.load(path, load_external_data=False)
    found = graph_file.read(path.read_bytes(), path=path)
    assert found.operators == set(operators(model))
    assert found.ir_version == model.ir_version
    assert found.opset == max(opset.version for opset in model.opset_import if opset.domain in {"", "ai.onnx"})
    assert found.noise == set()
    elsewhere = [tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    assert [tensor.tensor for tensor in found.external] == [tensor.name for tensor in elsewhere]


def test_there_are_many_real_graphs() -> None:
    assert len(REAL) > 100
    assert len(SHIPPED) >= 2


def tensors() -> st.SearchStrategy[TensorProto]:
    kinds = {TensorProto.FLOAT: "f4", TensorProto.INT64: "i8", TensorProto.UINT8: "u1", TensorProto.FLOAT16: "f2"}
    kinds |= {TensorProto.DOUBLE: "f8", TensorProto.BOOL: "?", TensorProto.INT32: "i4", TensorProto.UINT64: "u8"}

    def tensor(kind: int, shape: list[int], raw: bool) -> TensorProto:
        array = np.ones(shape, kinds[kind])
        return numpy_helper.from_array(array, "t") if raw else helper.make_tensor("t", kind, shape, array.ravel())

    shapes = st.lists(st.integers(0, 4), max_size=3)
    return st.builds(tensor, st.sampled_from(sorted(kinds)), shapes, st.booleans())


def nodes(graphs: st.SearchStrategy[GraphProto]) -> st.SearchStrategy[NodeProto]:
    attributes = st.one_of(
        graphs,
        st.lists(graphs, min_size=1, max_size=2),
        tensors(),
        st.lists(tensors(), min_size=1, max_size=2),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(width=32, allow_nan=False),
        st.text(min_size=1),
        st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
    )

    def node(kind: str, domain: str, named: dict[str, Any]) -> NodeProto:
        return helper.make_node(kind, ["x"], ["y"], domain=domain, **named)

    kinds = st.sampled_from(["Add", "If", "Dropout", "Gelu", *NOISE])
    domains = st.sampled_from(["", "ai.onnx", "com.microsoft", "ai.onnx.ml", "ü"])
    return st.builds(node, kinds, domains, st.dictionaries(st.sampled_from("abc"), attributes, max_size=3))


GRAPHS = st.recursive(
    st.builds(lambda: helper.make_graph([], "empty", [], [])),
    lambda graphs: st.builds(
        lambda inner, weights: helper.make_graph(inner, "g", [], [], weights),
        st.lists(nodes(graphs), max_size=3),
        st.lists(tensors(), max_size=2),
    ),
    max_leaves=8,
)
MODELS = st.builds(
    lambda graph, functions, opset, ir: helper.make_model(
        graph, functions=functions, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir
    ),
    GRAPHS,
    st.lists(
        st.builds(lambda graph, domain: in_function(*graph.node, domain=domain), GRAPHS, st.sampled_from(["", "mine"])),
        max_size=2,
    ),
    st.integers(20, 30),
    st.integers(1, 20),
)


@settings(max_examples=80)
@given(MODELS)
def test_any_graph_is_told_as_the_onnx_package_tells_it(model: ModelProto) -> None:
    found = told(model)
    expected = set(operators(model))
    assert found.operators == expected
    assert found.noise == {kind for domain, kind in expected if domain == "" and kind in NOISE}
    assert (found.ir_version, found.opset) == (model.ir_version, max(20, model.opset_import[0].version))


@settings(max_examples=300)
@given(MODELS, st.floats(0, 0.9999), st.integers(0, 255), st.sampled_from(["replace", "insert", "cut", "double"]))
def test_of_bytes_that_both_accept_both_tell_the_same(model: ModelProto, place: float, byte: int, change: str) -> None:
    content = model.SerializeToString()
    at = int(place * len(content))
    content = {
        "replace": content[:at] + bytes([byte]) + content[at + 1 :],
        "insert": content[:at] + bytes([byte]) + content[at:],
        "cut": content[:at],
        "double": content + content[at:],
    }[change]
    try:
        found = graph_file.read(content, path=PATH)
        expected = onnx.load_from_string(content)
    except (BadBundle, DecodeError):
        return  # one of them will not have it, and both must
    assert found.operators == set(operators(expected))
    assert found.ir_version == expected.ir_version


# Bytes that are no ONNX


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no graph, expected ONNX"),
        (b"\x08\x0a", "holds no graph, expected ONNX"),
        (b"\x3a\x05\x0a", "ends 4 bytes early, expected ONNX"),
        (b"\x3d\x00", "ends 3 bytes early, expected ONNX"),
        (b"\x3a" + b"\xff" * 10, "has a number without an end, expected ONNX"),
        (b"\x3a" + b"\xff" * 9 + b"\x02", "has a number without an end, expected ONNX"),
        (b"\x00\x01", "has a field without a number, expected ONNX"),
        (b"\xba\x80\x80\x80\x10\x00", "has the field number 536870919, which is beyond protobuf's, expected ONNX"),
        (
            b"\x3a\x08\x2a\x06\x70\x81\x80\x80\x80\x10",
            "has the number 4294967297 where there are 32 bits, expected ONNX",
        ),
        (b"\x3b\x3c", "has a field of wire type 3, expected ONNX"),
        (b"\x38\x01", "has wire type 0 in a field of Graph, expected ONNX"),
        (b"\x3a\x00\x3a\x00", "gives graph twice in one Model, expected ONNX"),
        (b"\x3a\x05\x0a\x03\x22\x01\xff", "has a name that is no UTF-8, expected ONNX"),
    ],
)
def test_bytes_that_are_no_onnx_are_refused(content: bytes, said: str) -> None:
    assert refusal(content) == said


def test_a_zip_and_a_text_are_no_onnx() -> None:
    for content in (b"PK\x03\x04" + bytes(50), b"\x00garbage\xff" * 9, b'{"graph": 1}'):
        assert refusal(content).endswith(", expected ONNX")


def test_a_truncated_graph_is_refused_wherever_it_ends() -> None:
    content = linear().encoder()
    for end in range(0, len(content) - 1, 97):
        assert refusal(content[:end])


def field(number: int, content: bytes) -> bytes:
    """A message as a field of another, of a length that takes three bytes."""
    length = len(content)
    return bytes([number << 3 | 2, length & 127 | 128, length >> 7 & 127 | 128, length >> 14]) + content


def nested(depth: int) -> bytes:
    """A model whose graph has a node with an attribute with a graph, and so on."""
    graph = b""
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))
    return field(7, graph)


def test_graphs_inside_graphs_without_end_are_refused() -> None:
    assert graph_file.read(nested(33), path=PATH).operators == {("", "")}
    for depth in (34, 5000):
        assert refusal(nested(depth)) == "is nested more than 100 messages deep, expected ONNX"


# Versions, operators, noise


@pytest.mark.parametrize(("opset", "said"), [(21, "opset is 21"), (0, "opset is 0"), (9999, "opset is 9999")])
def test_an_opset_that_not_every_provider_knows_is_refused(opset: int, said: str) -> None:
    assert refusal(of(opset=opset).SerializeToString()) == f"{said}, expected 1 to 20"


def test_a_model_that_imports_no_opset_of_onnx_is_refused() -> None:
    model = of()
    model.opset_import[0].domain = "com.microsoft"
    assert refusal(model.SerializeToString()) == "opset is 0, expected 1 to 20"


def test_the_opset_of_a_function_counts_too() -> None:
    function = in_function()
    function.opset_import[0].version = 21
    assert refusal(of(functions=[function]).SerializeToString()) == "opset is 21, expected 1 to 20"


def test_an_ir_version_that_not_every_provider_knows_is_refused() -> None:
    model = of()
    model.ir_version = 11
    assert refusal(model.SerializeToString()) == "IR version is 11, expected 1 to 10"


@pytest.mark.parametrize("wrap", [of, lambda node: of(inside(node)), lambda node: of(functions=[in_function(node)])])
@pytest.mark.parametrize("domain", ["com.microsoft", "ai.onnx.ml", "mine", "ai.onnx.preview.training"])
def test_an_operator_of_another_domain_is_refused(wrap: Callable[..., ModelProto], domain: str) -> None:
    model = wrap(helper.make_node("Gelu", ["x"], ["y"], domain=domain))
    sentence = f"has the operator '{domain}.Gelu', expected those of ONNX alone"
    assert refusal(model.SerializeToString()) == sentence


def test_a_local_function_of_another_domain_is_refused() -> None:
    model = of(functions=[in_function(domain="mine")])
    assert refusal(model.SerializeToString()) == "has the operator 'mine.Mine', expected those of ONNX alone"


@pytest.mark.parametrize("wrap", [of, lambda node: of(inside(node)), lambda node: of(functions=[in_function(node)])])
@pytest.mark.parametrize("kind", NOISE)
@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_an_operator_that_draws_numbers_is_refused(wrap: Callable[..., ModelProto], kind: str, domain: str) -> None:
    model = wrap(helper.make_node(kind, ["x"], ["y"], domain=domain))
    assert refusal(model.SerializeToString()) == f"draws random numbers ({kind}), expected no noise in graphs"


@pytest.mark.parametrize(
    ("inputs", "is_noise"),
    [(["x"], False), (["x", "ratio"], False), (["x", "ratio", ""], False), (["x", "", "no"], False),
     (["x", "", "yes"], True), (["x", "", "computed"], True)],
)  # fmt: skip
def test_dropout_is_noise_where_it_may_be_in_training(inputs: list[str], is_noise: bool) -> None:
    constants = [numpy_helper.from_array(np.array(value), name) for name, value in (("yes", True), ("no", False))]
    model = of(helper.make_node("Dropout", inputs, ["y"]), initializers=constants)
    assert told(model).noise == ({"Dropout"} if is_noise else set())


# Tensors


def claiming(dims: list[int], kind: int = TensorProto.FLOAT, **data: Any) -> TensorProto:
    return TensorProto(name="w", dims=dims, data_type=kind, **data)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (claiming([3_000_000_000], raw_data=bytes(100)), "claims 3000000000 elements, its bytes hold 25"),
        (claiming([2**40, 2**40]), f"claims {2**40} x {2**40} elements, its bytes hold 0"),
        (claiming([5], raw_data=bytes(19)), "claims 5 elements, its bytes hold 4"),
        (claiming([3], float_data=[1, 2]), "claims 3 elements, its bytes hold 2"),
        (claiming([3], TensorProto.INT64, int64_data=[1, -1]), "claims 3 elements, its bytes hold 2"),
        (claiming([3], TensorProto.UINT8, int32_data=[1, 255]), "claims 3 elements, its bytes hold 2"),
        (claiming([5], TensorProto.INT4, int32_data=[1, 255]), "claims 5 elements, its bytes hold 4"),
        (claiming([2], TensorProto.COMPLEX128, double_data=[1, 2]), "claims 2 elements, its bytes hold 1"),
        (claiming([2], TensorProto.STRING, string_data=[b"a"]), "claims 2 elements, its bytes hold 1"),
        (claiming([-1], raw_data=bytes(4)), "claims -1 elements, its bytes hold 1"),
        (claiming([1] * 65, raw_data=bytes(4)), "claims 1 x 1 x 1 x 1 x 1 x 1 x 1 x 1 elements, its bytes hold 1"),
        (claiming([1], 99, raw_data=bytes(4)), "has the type 99, expected one of ONNX's"),
        (claiming([1], 0, raw_data=bytes(4)), "has the type 0, expected one of ONNX's"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["initializer", "attribute", "inner graph"])
def test_a_tensor_that_claims_more_than_it_has_is_refused(tensor: TensorProto, said: str, place: str) -> None:
    if place == "initializer":
        model = of(initializers=[tensor])
    elif place == "attribute":
        model = of(helper.make_node("Constant", [], ["y"], value=tensor))
    else:
        model = of(inside(helper.make_node("Constant", [], ["y"], value=tensor)))
    assert refusal(model.SerializeToString()) == f"tensor 'w' {said}"


def test_dimensions_without_end_are_refused() -> None:
    packed = field(7, field(5, field(1, b"\x01" * 1000)))
    assert refusal(packed) == "has wire type 2 in a field of int, expected ONNX"


def test_a_sparse_tensor_is_refused() -> None:
    values, indices = helper.make_tensor("v", 1, [1], [1.0]), helper.make_tensor("i", 7, [1], [0])
    sparse = helper.make_sparse_tensor(values, indices, [3_000_000_000])
    constant = helper.make_node("Constant", [], ["y"], sparse_value=sparse)
    among_weights = of()
    among_weights.graph.sparse_initializer.append(sparse)
    for model in (of(constant), of(inside(constant)), among_weights):
        assert refusal(model.SerializeToString()) == "holds a sparse tensor, expected dense ones"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_weight_that_is_nan_is_refused(dtype: type) -> None:
    array = np.ones(1000, dtype)
    array[777] = np.nan
    model = of(initializers=[numpy_helper.from_array(array, "w")])
    assert refusal(model.SerializeToString()) == "tensor 'w' holds NaN, expected numbers"
    typed = of(initializers=[claiming([3], float_data=[1, np.nan, 2])])
    assert refusal(typed.SerializeToString()) == "tensor 'w' holds NaN, expected numbers"


def test_infinity_is_a_constant_as_any_other() -> None:
    model = of(initializers=[numpy_helper.from_array(np.array([-np.inf, np.inf], np.float32), "mask")])
    assert graph_file.checked(model.SerializeToString(), path=PATH, external={}) == told(model)


def test_large_weights_are_not_copied() -> None:
    content = of(initializers=[numpy_helper.from_array(np.ones(2**22, np.float32), "w")]).SerializeToString()
    tracemalloc.start()
    graph_file.read(content, path=PATH)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(content) / 16


# Bytes in other files

DECODER_BYTES = linear().decoder()
PLACE = {"location": "decoder.onnx", "offset": 10, "length": 1440}


def scorer(**entries: object) -> bytes:
    """A scorer whose matrix, of 1440 bytes, lies where the entries say."""
    return with_external(linear().scorer(), "d", PLACE | entries)


def test_bytes_in_a_file_that_is_given_are_told() -> None:
    found = graph_file.checked(scorer(), path=PATH, external={"decoder.onnx": DECODER_BYTES})
    assert found.external == (External("d", "decoder.onnx", 10, 1440),)


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../decoder.onnx", "./decoder.onnx", "weights.bin", "", "*/_ORT_MEM_ADDR_/*"]
)
def test_bytes_in_any_other_file_are_refused(location: str) -> None:
    sentence = f"tensor 'd' lies in {location!r}, expected it in the graph itself"
    assert refusal(scorer(location=location)) == sentence
    external = {"decoder.onnx": DECODER_BYTES}
    assert refusal(scorer(location=location), external) == f"{sentence} or decoder.onnx"


@pytest.mark.parametrize(("offset", "length"), [(0, 10**9), (10**9, 1440), (len(DECODER_BYTES) - 1439, 1440)])
def test_bytes_beyond_the_file_are_refused(offset: int, length: int) -> None:
    said = f"lies in bytes {offset} to {offset + length} of decoder.onnx, which has {len(DECODER_BYTES)}"
    assert refusal(scorer(offset=offset, length=length), {"decoder.onnx": DECODER_BYTES}) == f"tensor 'd' {said}"


def test_fewer_bytes_than_the_shape_needs_are_refused() -> None:
    said = "tensor 'd' claims 4 x 90 elements, its bytes hold 359"
    assert refusal(scorer(length=1439), {"decoder.onnx": DECODER_BYTES}) == said


@pytest.mark.parametrize(
    "entries",
    [{"offset": "-1"}, {"offset": "0x10"}, {"length": "١"}, {"length": ""}, {"offset": "1" * 19}, {"basepath": "/"}],
)
def test_a_place_that_is_not_told_in_plain_numbers_is_refused(entries: dict[str, object]) -> None:
    sentence = refusal(scorer(**entries), {"decoder.onnx": DECODER_BYTES})
    assert sentence.startswith("tensor 'd' lies elsewhere by [('location', 'decoder.onnx'), ")
    assert sentence.endswith(", expected location, offset and length")


def test_a_place_that_is_told_twice_or_not_at_all_is_refused() -> None:
    def twice(graph: GraphProto) -> None:
        (tensor,) = (tensor for tensor in graph.initializer if tensor.name == "d")
        tensor.external_data.extend(list(tensor.external_data))

    for content in (edited(scorer(), twice), with_external(linear().scorer(), "d", {"location": "decoder.onnx"})):
        sentence = refusal(content, {"decoder.onnx": DECODER_BYTES})
        assert sentence.endswith(", expected location, offset and length")


def test_bytes_elsewhere_are_for_the_weights_of_the_outermost_graph_alone() -> None:
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "w")
    outside(tensor, {"location": "decoder.onnx", "offset": 0, "length": 8})
    constant = helper.make_node("Constant", [], ["y"], value=tensor)
    branch = helper.make_graph([], "then", [], [], [tensor])
    weights = helper.make_node("If", ["c"], ["y"], then_branch=branch)
    for model in (of(constant), of(inside(constant)), of(weights), of(functions=[in_function(constant)])):
        sentence = refusal(model.SerializeToString(), {"decoder.onnx": bytes(8)})
        assert sentence == "tensor 'w', inside of a node, lies elsewhere, expected it in the graph"


def test_a_tensor_that_lies_in_two_places_is_refused() -> None:
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "w")
    tensor.external_data.add(key="location", value="/etc/passwd")
    sentence = "tensor 'w' names another file but lies in the graph, expected one of both"
    assert refusal(of(initializers=[tensor]).SerializeToString()) == sentence


def test_whatever_a_file_says_stays_in_one_line() -> None:
    name = "a\nb" * 200
    sentence = refusal(of(helper.make_node("X", [], [], domain=name)).SerializeToString())
    assert len(sentence) < 300
    weight = numpy_helper.from_array(np.array([np.nan], np.float32), name)
    assert len(refusal(of(initializers=[weight]).SerializeToString())) < 300


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_shipped_graphs_pass(path: Path) -> None:
    external = {"decoder.onnx": path.with_name("decoder.onnx").read_bytes()}
    assert graph_file.checked(path.read_bytes(), path=path, external=external).opset == 20
