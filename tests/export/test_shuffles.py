from itertools import pairwise

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch.nn import functional

from export.layers import prune
from export.shuffles import without_transposed

INPUTS, OUTPUTS = 3, 5


def transposed(
    size: tuple[int, int], *, has_bias: bool = True, behind: str | None = None, **said: object
) -> ModelProto:
    """x through one transposed convolution, and perhaps through something behind it."""
    rng = np.random.default_rng(0)
    arrays = {"kernel": rng.standard_normal((INPUTS, OUTPUTS // said.get("group", 1), *size), dtype=np.float32)}
    if has_bias:
        arrays["bias"] = rng.standard_normal(OUTPUTS // said.get("group", 1), dtype=np.float32)
    names = ["a", "y"] if behind else ["y"]
    nodes = [helper.make_node("ConvTranspose", ["x", *arrays], [names[0]], name="up", **said)]
    nodes += [helper.make_node(behind, [before], [after]) for before, after in pairwise(names)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", INPUTS, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", OUTPUTS // said.get("group", 1), "H", "W"])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def shuffled(model: ModelProto) -> ModelProto:
    without_transposed(model.graph)
    prune(model.graph)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize(
    ("stride", "size", "pads", "output_padding"),
    [
        (1, (4, 4), 1, 0),
        (1, (2, 5), 0, 0),
        (2, (4, 4), 1, 0),
        (2, (5, 4), 2, 0),
        (2, (3, 3), 1, 1),
        (2, (2, 5), 0, 0),
        (3, (4, 4), 1, 0),
        (3, (5, 4), 2, 1),
        (3, (3, 3), 1, 1),
    ],
)
def test_a_shuffle_gives_what_torchs_transposed_convolution_gives(
    stride: int, size: tuple[int, int], pads: int, output_padding: int
) -> None:
    said = {"strides": [stride] * 2, "pads": [pads] * 4, "output_padding": [output_padding] * 2}
    model = transposed(size, **said)
    kernel, bias = (torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in model.graph.initializer)
    session = ort.InferenceSession(shuffled(model).SerializeToString(), providers=["CPUExecutionProvider"])
    assert "ConvTranspose" not in {node.op_type for node in model.graph.node}
    for height, width in ((4, 7), (3, 3)):
        x = np.random.default_rng(1).standard_normal((2, INPUTS, height, width), dtype=np.float32)
        expected = functional.conv_transpose2d(torch.from_numpy(x), kernel, bias, stride, pads, output_padding)
        np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, atol=1e-5)


def test_one_without_pads_that_fills_its_strides_needs_no_slice_and_no_bias() -> None:
    model = shuffled(transposed((2, 2), has_bias=False, strides=[2, 2]))
    assert [node.op_type for node in model.graph.node] == ["Conv", "DepthToSpace"]


def test_a_relu_behind_it_moves_to_the_convolution() -> None:
    model = shuffled(transposed((4, 4), behind="Relu", strides=[2, 2], pads=[1, 1, 1, 1]))
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu", "DepthToSpace", "Slice"]
    model = shuffled(transposed((4, 4), behind="Sigmoid", strides=[2, 2], pads=[1, 1, 1, 1]))
    assert [node.op_type for node in model.graph.node] == ["Conv", "DepthToSpace", "Slice", "Sigmoid"]


@pytest.mark.parametrize(
    "said",
    [
        {"group": INPUTS},
        {"dilations": [2, 2]},
        {"strides": [2, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"strides": [2, 2], "output_padding": [1, 1]},
    ],
    ids=lambda said: "-".join(said),
)
def test_one_of_a_rare_form_stays_as_it_is(said: dict[str, object]) -> None:
    model = transposed((2, 2), **said)
    before = model.SerializeToString()
    without_transposed(model.graph)
    assert model.SerializeToString() == before
