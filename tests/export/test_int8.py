import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.int8 import calibrated, quantised, rounded

FEATURES = 6


def session(graph: bytes) -> ort.InferenceSession:
    """A session that adds exactly on processors without VNNI too, as the service's does."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def convolutions(n: int, *, seed: int = 0) -> bytes:
    """x through convolutions and ReLUs in turn."""
    rng = np.random.default_rng(seed)
    names = ["x", *(f"{kind}{i}" for i in range(n) for kind in ("c", "r"))]
    nodes = []
    weights = []
    for i in range(n):
        before, conv, relu = names[2 * i : 2 * i + 3]
        nodes += [helper.make_node("Conv", [before, f"w{i}", f"b{i}"], [conv], pads=[1, 1, 1, 1])]
        nodes += [helper.make_node("Relu", [conv], [relu])]
        kernel = rng.standard_normal((FEATURES, FEATURES, 3, 3), dtype=np.float32) / 7
        weights += [numpy_helper.from_array(kernel, f"w{i}")]
        weights += [numpy_helper.from_array(rng.standard_normal(FEATURES, dtype=np.float32) / 10, f"b{i}")]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", FEATURES, "h", "w"])
        for name in (names[0], names[-1])
    ]
    graph = helper.make_graph(nodes, "g", [ends[0]], [ends[1]], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def x(n: int, *, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((n, FEATURES, 8, 8), dtype=np.float32)


def stored(graph: bytes) -> dict[str, int]:
    """How many layers hold their weights in which type."""
    model = onnx.load_from_string(graph)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    came = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    weights = [came.get(node.input[1], node.input[1]) for node in model.graph.node if node.op_type == "Conv"]
    types = [TensorProto.DataType.Name(tensors[name].data_type) for name in weights]
    return {name: types.count(name) for name in set(types)}


def test_layers_hold_integers_and_answer_nearly_as_before() -> None:
    graph = convolutions(3)
    reduced = quantised(calibrated(graph, [{"x": x(8)}]), float_layers=0)
    assert stored(reduced) == {"INT8": 3}
    (expected,), (found,) = (session(content).run(None, {"x": x(4, seed=1)}) for content in (graph, reduced))
    assert 20 * np.log10(expected.std() / (found - expected).std()) > 30


def test_the_last_layers_stay_in_float_where_that_is_asked_and_lose_less() -> None:
    graph = convolutions(3)
    ready = calibrated(graph, [{"x": x(8)}])
    assert ready.layers == 3
    assert stored(quantised(ready, float_layers=1)) == {"INT8": 2, "FLOAT": 1}
    assert stored(quantised(ready, float_layers=3)) == {"FLOAT": 3}
    (expected,) = session(graph).run(None, {"x": x(4, seed=1)})
    (all_in_float,) = session(quantised(ready, float_layers=3)).run(None, {"x": x(4, seed=1)})
    np.testing.assert_allclose(all_in_float, expected, atol=1e-6)
    errors = [
        np.abs(session(quantised(ready, float_layers=layers)).run(None, {"x": x(4, seed=1)})[0] - expected).mean()
        for layers in range(3)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_a_reduced_graph_has_onnxs_own_operators_and_scales_of_each_channel() -> None:
    model = onnx.load_from_string(quantised(calibrated(convolutions(1), [{"x": x(8)}]), float_layers=0))
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    assert {node.op_type for node in model.graph.node} == {"QuantizeLinear", "DequantizeLinear", "Conv"}
    (weights,) = [tensor for tensor in model.graph.initializer if list(tensor.dims) == [FEATURES, FEATURES, 3, 3]]
    (reader,) = [node for node in model.graph.node if weights.name in node.input]
    (scale,) = [tensor for tensor in model.graph.initializer if tensor.name == reader.input[1]]
    assert list(scale.dims) == [FEATURES]


def test_the_quantiser_leaves_rounded_kernels_as_they_are() -> None:
    graph = convolutions(1)
    (kernel,) = [t for t in onnx.load_from_string(graph).graph.initializer if t.name == "w0"]
    expected = rounded(numpy_helper.to_array(kernel))
    model = onnx.load_from_string(quantised(calibrated(graph, [{"x": x(8)}]), float_layers=0))
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    (reader,) = [node for node in model.graph.node if tensors.get(node.input[0], np.empty(0)).ndim == 4]
    integers, scale = tensors[reader.input[0]], tensors[reader.input[1]]
    np.testing.assert_allclose(integers * scale.reshape(-1, 1, 1, 1), expected, rtol=1e-6)


def test_rounding_keeps_the_sum_of_every_kernel_within_half_a_step_and_each_weight_within_one() -> None:
    weights = np.random.default_rng(3).standard_normal((7, 5, 3, 3), dtype=np.float32)
    on_grid = rounded(weights)
    step = np.abs(weights).max(axis=(1, 2, 3), keepdims=True) / 127
    assert np.abs(on_grid / step - np.rint(on_grid / step)).max() < 1e-4
    assert (np.abs(on_grid - weights) < step * 1.0001).all()
    sums = np.abs((on_grid - weights).sum(axis=(2, 3))) / step[:, :, 0, 0]
    assert sums.max() < 0.501
    nearest = np.abs((np.rint(weights / step) * step - weights).sum(axis=(2, 3))) / step[:, :, 0, 0]
    assert nearest.max() > 1  # what is won


def test_the_largest_weight_of_a_channel_and_channels_of_zeros_stay() -> None:
    weights = np.zeros((2, 1, 3, 3), np.float32)
    weights[0] = 0.4
    weights[0, 0, 1, 1] = 127
    on_grid = rounded(weights)
    assert on_grid[0, 0, 1, 1] == 127
    assert on_grid[0].sum() == 130  # 8 × 0.4 is 3.2, where rounding each would give 0
    assert not on_grid[1].any()


def test_weights_of_one_pixel_are_rounded_to_the_nearest() -> None:
    weights = np.array([127, 0.4, 0.6, -3.5], np.float32).reshape(1, 4, 1, 1)
    np.testing.assert_array_equal(rounded(weights).ravel(), [127, 0, 1, -4])


def test_even_areas_come_out_less_too_light_or_too_dark_than_with_each_weight_rounded() -> None:
    weights = np.random.default_rng(3).standard_normal((64, 3, 3, 3), dtype=np.float32)
    step = np.abs(weights).max(axis=(1, 2, 3), keepdims=True) / 127
    nearest = np.rint(weights / step) * step
    grey = np.array([0.2, 0.5, 0.9]).reshape(1, 3, 1, 1)
    shifts = [np.abs(((w - weights) * grey).sum(axis=(1, 2, 3))).mean() for w in (rounded(weights), nearest)]
    assert shifts[0] < shifts[1] / 2


def test_pictures_are_enlarged_in_integers_only_where_pixels_are_repeated() -> None:
    kernel = numpy_helper.from_array(np.ones((1, FEATURES, 1, 1), np.float32), "w")
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    ends = [
        helper.make_tensor_value_info(*of) for of in (("x", 1, ["n", FEATURES, "h", "w"]), ("y", 1, ["n", 1, "H", "W"]))
    ]
    for mode in ("nearest", "linear", "cubic"):
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["a"]),
            helper.make_node("Resize", ["a", "", "scales"], ["y"], mode=mode),
        ]
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [kernel, scales])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        reduced = quantised(calibrated(model.SerializeToString(), [{"x": x(2)}]), float_layers=0)
        assert session(reduced).run(None, {"x": x(2)})[0].shape == (2, 1, 16, 16)
        after = [node.op_type for node in onnx.load_from_string(reduced).graph.node][-2:]
        assert after == (
            ["QuantizeLinear", "DequantizeLinear"] if mode == "nearest" else ["DequantizeLinear", "Resize"]
        )


def test_another_process_makes_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "reduced.onnx"
    code = (
        "import sys; from pathlib import Path; from export.int8 import calibrated, quantised;"
        "from tests.export.test_int8 import convolutions, x;"
        "ready = calibrated(convolutions(2), [{'x': x(4)}]);"
        "Path(sys.argv[1]).write_bytes(quantised(ready, float_layers=1))"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, cwd=root, env=os.environ | {"PYTHONHASHSEED": "1"}
    )
    assert path.read_bytes() == quantised(calibrated(convolutions(2), [{"x": x(4)}]), float_layers=1)
