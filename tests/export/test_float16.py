import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.float16 import halved

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16


def a_graph(*nodes: NodeProto, weights: dict[str, np.ndarray], outputs: tuple[str, ...] = ("y",)) -> bytes:
    """x (n, 4) through nodes."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 4])],
        [helper.make_tensor_value_info(name, FLOAT, ["n", 4]) for name in outputs],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


WEIGHTS = np.random.default_rng(0).standard_normal((4, 4))
TWO_LAYERS = a_graph(
    helper.make_node("Mul", ["x", "third"], ["scaled"]),
    helper.make_node("MatMul", ["scaled", "w"], ["a"]),
    helper.make_node("Sigmoid", ["a"], ["b"]),
    helper.make_node("MatMul", ["b", "w"], ["c"]),
    helper.make_node("Exp", ["c"], ["y"]),
    weights={"w": WEIGHTS, "third": np.array(1 / 3)},
)


def types(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """What each operator gives, by its type."""
    typed = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    known = {value.name: value.type.tensor_type.elem_type for value in (*typed.value_info, *typed.input, *typed.output)}
    found: dict[str, tuple[int, ...]] = {}
    for node in typed.node:
        found[node.op_type] = (*found.get(node.op_type, ()), known[node.output[0]])
    return found


def run(graph: bytes, x: np.ndarray) -> list[np.ndarray]:
    return ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, {"x": x})


def test_layers_and_what_lies_between_compute_in_float16_and_the_rest_in_float32() -> None:
    model = onnx.load_from_string(halved(TWO_LAYERS))
    assert types(model) == {
        "Mul": (FLOAT,),
        "Cast": (FLOAT16, FLOAT),
        "MatMul": (FLOAT16, FLOAT16),
        "Sigmoid": (FLOAT16,),
        "Exp": (FLOAT,),
    }
    assert {tensor.name: tensor.data_type for tensor in model.graph.initializer} == {
        "third": FLOAT,
        "w.float16": FLOAT16,
    }


def test_what_it_gives_differs_by_float16s_rounding() -> None:
    x = np.random.default_rng(1).standard_normal((5, 4), dtype=np.float32)
    (expected,), (found,) = run(TWO_LAYERS, x), run(halved(TWO_LAYERS), x)
    assert found.dtype == np.float32
    assert 0 < np.abs(found / expected - 1).max() < 0.01


def test_an_output_that_a_layer_gives_and_another_layer_reads_is_float32_outside() -> None:
    graph = a_graph(
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("MatMul", ["y", "w"], ["z"]),
        weights={"w": WEIGHTS},
        outputs=("y", "z"),
    )
    x = np.random.default_rng(1).standard_normal((5, 4), dtype=np.float32)
    for expected, found in zip(run(graph, x), run(halved(graph), x), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=0.02)


def test_shapes_and_scales_stay_what_onnx_wants_them_to_be() -> None:
    kernel = np.random.default_rng(0).standard_normal((2, 2, 3, 3)).astype(np.float32) / 5
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Resize", ["a", "", "scales"], ["b"], mode="nearest"),
        helper.make_node("Shape", ["b"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Add", ["b", "zeros"], ["c"]),
        helper.make_node("Conv", ["c", "w"], ["y"], pads=[1, 1, 1, 1]),
    ]
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    ends = [helper.make_tensor_value_info(name, FLOAT, ["n", 2, *size]) for name, size in (("x", "hw"), ("y", "HW"))]
    graph = helper.make_graph(nodes, "g", [ends[0]], [ends[1]], [numpy_helper.from_array(kernel, "w"), scales])
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    reduced = halved(content)
    found = types(onnx.load_from_string(reduced))
    assert found["Resize"] == found["Add"] == (FLOAT16,)
    assert found["ConstantOfShape"] == (FLOAT,)
    x = np.random.default_rng(1).random((2, 2, 5, 6), dtype=np.float32)
    np.testing.assert_allclose(run(reduced, x)[0], run(content, x)[0], atol=0.02)


def test_scales_that_are_computed_between_layers_come_back_to_float32() -> None:
    kernel = np.random.default_rng(0).standard_normal((2, 2, 3, 3)).astype(np.float32) / 5
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMax", ["a"], ["largest"], keepdims=0),
        helper.make_node("Mul", ["largest", "none"], ["nothing"]),
        helper.make_node("Add", ["nothing", "twice"], ["scales"]),
        helper.make_node("Resize", ["a", "", "scales"], ["b"], mode="nearest"),
        helper.make_node("Conv", ["b", "w"], ["y"], pads=[1, 1, 1, 1]),
    ]
    arrays = {"w": kernel, "none": np.array(0, np.float32), "twice": np.array([1, 1, 2, 2], np.float32)}
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    ends = [helper.make_tensor_value_info(name, FLOAT, ["n", 2, *size]) for name, size in (("x", "hw"), ("y", "HW"))]
    graph = helper.make_graph(nodes, "g", [ends[0]], [ends[1]], weights)
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    reduced = halved(content)
    assert types(onnx.load_from_string(reduced))["Add"] == (FLOAT16,)
    x = np.random.default_rng(1).random((2, 2, 5, 6), dtype=np.float32)
    np.testing.assert_allclose(run(reduced, x)[0], run(content, x)[0], atol=0.02)


@pytest.mark.parametrize("graph", [TWO_LAYERS, a_graph(helper.make_node("Exp", ["x"], ["y"]), weights={})])
def test_the_same_graph_gives_the_same_bytes(graph: bytes) -> None:
    assert halved(graph) == halved(graph)
