"""Transposed convolutions as convolutions whose channels become pixels, since engines have only those in int8.

Source:  Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?", arXiv:1609.07009
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, helper, numpy_helper

Float32 = NDArray[np.float32]

# The end of a Slice that leaves nothing out.
_LAST = 2**31 - 1


def without_transposed(graph: GraphProto) -> None:
    """Replace every ConvTranspose of known weights by Conv, DepthToSpace and Slice, which give the same numbers.

    Those of a rare form stay: with groups, dilations or unequal strides, or with an output padding beyond the kernel.
    """
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "ConvTranspose"]:
        if all(name in weights for name in node.input[1:]) and (form := _Form.of(node, weights[node.input[1]])):
            _replace(node, form, graph=graph, kernel=weights[node.input[1]], bias=[weights[n] for n in node.input[2:]])


@dataclass(frozen=True)
class _Form:
    """Strides of a transposed convolution, and what its shuffled counterpart has too much on each side, in pixels."""

    stride: int
    before: tuple[int, int]
    behind: tuple[int, int]

    @classmethod
    def of(cls, node: NodeProto, kernel: Float32) -> "_Form | None":
        """The form of a node, None if it is a rare one."""
        said = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        size = kernel.shape[2:]
        strides, pads = said.get("strides", [1, 1]), said.get("pads", [0, 0, 0, 0])
        padding = said.get("output_padding", [0, 0])
        is_plain = said.get("auto_pad", b"NOTSET") == b"NOTSET" and "output_shape" not in said
        is_dense = said.get("group", 1) == 1 and set(said.get("dilations", [1])) == {1}
        if len(size) != 2 or len(set(strides)) != 1 or not is_plain or not is_dense:
            return None
        stride = strides[0]
        behind = [
            stride * taps + pad - length - more
            for taps, pad, length, more in zip(_taps(kernel, stride), pads[2:], size, padding, strict=True)
        ]
        return cls(stride, (pads[0], pads[1]), (behind[0], behind[1])) if min(behind) >= 0 else None


def _replace(node: NodeProto, form: _Form, *, graph: GraphProto, kernel: Float32, bias: list[Float32]) -> None:
    """Put new nodes into the place of one; a ReLU behind it moves to the Conv, where integers are clipped for free."""
    name, stride = node.name, form.stride
    tall, wide = _taps(kernel, stride)
    arrays = {f"{name}.kernel": _phases(kernel, stride)} | {f"{name}.bias": np.repeat(b, stride**2) for b in bias}
    graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in arrays.items())
    pads = [tall - 1, wide - 1, tall - 1, wide - 1]
    nodes = [helper.make_node("Conv", [node.input[0], *arrays], [""], name=f"{name}.conv", pads=pads)]
    behind = [reader for reader in graph.node if node.output[0] in reader.input]
    output = node.output[0]
    if [reader.op_type for reader in behind] == ["Relu"]:
        nodes.append(helper.make_node("Relu", [""], [""], name=f"{name}.relu"))
        output = behind[0].output[0]
        graph.node.remove(behind[0])
    if stride > 1:
        shuffle = helper.make_node("DepthToSpace", [""], [""], name=f"{name}.shuffle", blocksize=stride, mode="CRD")
        nodes.append(shuffle)
    if any((*form.before, *form.behind)):
        bounds = {
            f"{name}.starts": form.before,
            f"{name}.ends": [-cut or _LAST for cut in form.behind],
            f"{name}.axes": [2, 3],
        }
        graph.initializer.extend(numpy_helper.from_array(np.array(bound), key) for key, bound in bounds.items())
        nodes.append(helper.make_node("Slice", ["", *bounds], [""], name=f"{name}.slice"))
    for i, (before, after) in enumerate(pairwise(nodes)):
        before.output[0] = after.input[0] = f"{name}.{i}"
    nodes[-1].output[0] = output
    place = list(graph.node).index(node)
    graph.node.remove(node)
    for new in reversed(nodes):
        graph.node.insert(place, new)


def _phases(kernel: Float32, stride: int) -> Float32:
    """The kernel of a Conv whose channel (output, r, c) gives the pixels at row r and column c of every stride.

    Shapes:  (inputs, outputs, tall, wide) -> (outputs * stride², inputs, taps, taps)
    """
    inputs, outputs = kernel.shape[:2]
    tall, wide = _taps(kernel, stride)
    padded = np.zeros((inputs, outputs, tall * stride, wide * stride), np.float32)
    padded[:, :, : kernel.shape[2], : kernel.shape[3]] = kernel
    split = padded.reshape(inputs, outputs, tall, stride, wide, stride)[:, :, ::-1, :, ::-1]
    return np.ascontiguousarray(split.transpose(1, 3, 5, 0, 2, 4)).reshape(outputs * stride**2, inputs, tall, wide)


def _taps(kernel: Float32, stride: int) -> tuple[int, int]:
    """Rows and columns of a picture that one pixel of the larger one is made of."""
    return -(-kernel.shape[2] // stride), -(-kernel.shape[3] // stride)
