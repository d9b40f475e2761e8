"""Graphs that compute in float16 from their first layer to their last, and in float32 before and after."""

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from export.graphs import plain
from export.layers import ahead, are_layers, behind, opened, prune

# Inputs that ONNX has in float32 whatever the others are: the region and the scales.
_ALWAYS_FLOAT32 = {"Resize": (1, 2)}


def halved(graph: bytes) -> bytes:
    """The graph in float16; pixels are scaled and rounded, logvar is converted and clamped, in float32 as before."""
    model = onnx.shape_inference.infer_shapes(opened(graph), strict_mode=True)
    halving = _Halving(model.graph)
    between = zip(model.graph.node, are_layers(model.graph), behind(model.graph), ahead(model.graph), strict=True)
    for node, is_layer, layers_behind, layers_ahead in list(between):
        if is_layer or (layers_behind and layers_ahead):
            halving.halve(node)
        else:
            halving.keep(node)
    for output in model.graph.output:
        halving.restore(output.name)
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(halving.nodes)
    prune(model.graph)
    return plain(model)


class _Halving:
    """The nodes of a graph that is being rewritten, in order, and which of its tensors exist in which type."""

    def __init__(self, graph: GraphProto) -> None:
        self.nodes: list[NodeProto] = []
        self._graph = graph
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        typed = (*graph.input, *graph.output, *graph.value_info)
        floats = {value.name for value in typed if value.type.tensor_type.elem_type == TensorProto.FLOAT}
        self._floats = floats | {
            name for name, tensor in self._weights.items() if tensor.data_type == TensorProto.FLOAT
        }
        self._in_float16: set[str] = set()
        self._in_float32 = {value.name for value in graph.input} | set(self._weights)

    def halve(self, node: NodeProto) -> None:
        """Add a node that takes and gives float16 where it took and gave float32."""
        places = [
            place
            for place, name in enumerate(node.input)
            if name in self._floats and place not in _ALWAYS_FLOAT32.get(node.op_type, ())
        ]
        if not places:  # it takes no numbers, so it decides by itself which type it gives
            self.keep(node)
            return
        for place in _ALWAYS_FLOAT32.get(node.op_type, ()):
            if place < len(node.input):
                self.restore(node.input[place])
        for place in places:
            node.input[place] = self._half(node.input[place])
        for place, name in enumerate(node.output):
            if name in self._floats:
                node.output[place] = _half_name(name)
                self._in_float16.add(name)
        self.nodes.append(node)

    def keep(self, node: NodeProto) -> None:
        """Add a node as it is."""
        for name in node.input:
            self.restore(name)
        self.nodes.append(node)
        self._in_float32.update(node.output)

    def restore(self, name: str) -> None:
        """Make sure that a tensor exists as what it was."""
        if name in self._in_float16 and name not in self._in_float32:
            self._cast(_half_name(name), name, to=TensorProto.FLOAT)
            self._in_float32.add(name)

    def _half(self, name: str) -> str:
        """The name of a tensor in float16."""
        if name not in self._in_float16:
            if name in self._weights:
                with np.errstate(over="ignore"):  # an infinite weight is told by what it gives
                    array = numpy_helper.to_array(self._weights[name]).astype(np.float16)
                self._graph.initializer.append(numpy_helper.from_array(array, _half_name(name)))
            else:
                self._cast(name, _half_name(name), to=TensorProto.FLOAT16)
            self._in_float16.add(name)
        return _half_name(name)

    def _cast(self, before: str, after: str, *, to: int) -> None:
        self.nodes.append(helper.make_node("Cast", [before], [after], name=f"Cast.{after}", to=to))


def _half_name(name: str) -> str:
    return f"{name}.float16"
