"""A graph opened for surgery: constants folded, nodes named, and where its layers are."""

from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnxruntime as ort
from onnx import GraphProto, ModelProto

# What multiplies by weights: the second input is an initializer, as it is not in the products inside attention.
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def opened(graph: bytes) -> ModelProto:
    """A graph with constants folded and norms of known statistics merged into convolutions, every node with a name."""
    with TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        # The level that stays within ONNX's own operators.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        model = onnx.load_model(options.optimized_model_filepath)
    own = [opset for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(own)
    for i, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}.{i}"
    return model


def prune(graph: GraphProto) -> None:
    """Take out the weights that nothing reads."""
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def ahead(graph: GraphProto) -> list[int]:
    """For every node, the number of layers that follow it on the longest way to an output."""
    return _counted(graph, forward=False)


def behind(graph: GraphProto) -> list[int]:
    """For every node, the number of layers before it on the longest way from an input."""
    return _counted(graph, forward=True)


def are_layers(graph: GraphProto) -> list[bool]:
    """For every node, whether it is a layer."""
    weights = {tensor.name for tensor in graph.initializer}
    return [node.op_type in LAYERS and node.input[1] in weights for node in graph.node]


def _counted(graph: GraphProto, *, forward: bool) -> list[int]:
    step = 1 if forward else -1
    passed: defaultdict[str, int] = defaultdict(int)  # layers on the way to a tensor
    counts = []
    for node, is_layer in list(zip(graph.node, are_layers(graph), strict=True))[::step]:
        came, goes = (node.input, node.output)[::step]
        counts.append(max((passed[name] for name in came), default=0))
        for name in goes:
            passed[name] = max(passed[name], counts[-1] + is_layer)
    return counts[::step]
