import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export.layers import ahead, are_layers, behind, opened, prune


def a_graph() -> ModelProto:
    """x, two branches of one and two layers, their sum, and a product without weights."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["short"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["long"]),
        helper.make_node("Add", ["short", "long"], ["sum"]),
        helper.make_node("MatMul", ["sum", "a"], ["y"]),
    ]
    square = (
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2]),
        helper.make_tensor_value_info("y", 1, [2, 2]),
    )
    weights = [numpy_helper.from_array(np.eye(2, dtype=np.float32), name) for name in ("w", "unread")]
    graph = helper.make_graph(nodes, "g", [square[0]], [square[1]], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_layer_is_what_multiplies_by_weights() -> None:
    assert are_layers(a_graph().graph) == [False, True, True, True, False, False]


def test_layers_ahead_and_behind_are_those_of_the_longest_way() -> None:
    graph = a_graph().graph
    assert ahead(graph) == [2, 0, 1, 0, 0, 0]
    assert behind(graph) == [0, 0, 0, 1, 2, 2]


def test_weights_that_nothing_reads_are_taken_out() -> None:
    graph = a_graph().graph
    prune(graph)
    assert [tensor.name for tensor in graph.initializer] == ["w"]


def test_a_norm_of_known_statistics_is_merged_into_its_convolution_and_every_node_is_named() -> None:
    rng = np.random.default_rng(0)
    arrays = {"w": rng.random((3, 2, 3, 3)), **{name: rng.random(3) for name in ("scale", "shift", "mean", "variance")}}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 3, 3])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    before = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    model = opened(before)
    assert [(node.op_type, node.name) for node in model.graph.node] == [("Conv", "Conv.0")]
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    x = rng.random((2, 2, 5, 5), dtype=np.float32)
    expected, found = (
        ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for content in (before, model.SerializeToString())
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
