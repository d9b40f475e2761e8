"""Bundles that pass reading and must not be served: how they are made, and the one sentence of their refusal."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from service.bundle import BadBundle, read
from service.engine import Engine
from service.manifest import DECODER, ENCODER, SCORER
from tests.service.broken import edited, made
from tests.service.linear import Linear

# Of an encoder that loses its rows above four.
FIRST_FOUR_ROWS = {"starts": np.array([0]), "ends": np.array([4])}


def started(folder: Path, *, max_batch_rows: int = 8, max_run_pixels: int = 10**6) -> Engine:
    engine = Engine(read(folder), device="cpu", threads=1)
    engine.warm(max_batch_rows, max_run_pixels)
    return engine


def refusal(folder: Path, *, max_batch_rows: int = 8, max_run_pixels: int = 10**6) -> str:
    """The one sentence of a bundle that passes reading and must not be served."""
    bundle = read(folder)
    with pytest.raises(BadBundle) as refused:
        Engine(bundle, device="cpu", threads=1).warm(max_batch_rows, max_run_pixels)
    sentence = str(refused.value)
    assert "\n" not in sentence
    return sentence


# What a sound engine gives


def with_graph(folder: Path, model: Linear, file: str, edit: Callable[[bytes], bytes]) -> Path:
    """A bundle with a scorer, one of its graphs edited."""
    probe = model.probe()
    graphs = {ENCODER: model.encoder(), DECODER: model.decoder(), SCORER: model.scorer()}
    graphs[file] = edit(graphs[file])
    return made(
        folder,
        model,
        encoder=graphs[ENCODER],
        decoder=graphs[DECODER],
        scorer=graphs[SCORER],
        probe=replace(probe, log_likelihood=model.log_likelihood(probe.image, probe.z)),
    )


def of_four_rows(model: Linear) -> bytes:
    """A decoder traced with the probe's batch: declared free, reshaped to four rows where no shape shows it."""

    def edit(graph: onnx.GraphProto) -> None:
        four = onnx.numpy_helper.from_array(np.array([4, *model.shape]), "four")
        graph.initializer.append(four)
        hiding = [("Mul", ["z", "zero"], "nothing"), ("ReduceSum", ["nothing"], "none"), ("Cast", ["none"], "added")]
        nodes = [onnx.helper.make_node(operator, inputs, [output]) for operator, inputs, output in hiding]
        nodes[1].attribute.append(onnx.helper.make_attribute("keepdims", 0))
        nodes[2].attribute.append(onnx.helper.make_attribute("to", onnx.TensorProto.INT64))
        nodes.append(onnx.helper.make_node("Add", ["four", "added"], ["traced"]))
        for place, node in enumerate(nodes):
            graph.node.insert(place, node)
        graph.node[-1].input[1] = "traced"

    return edited(model.decoder(), edit)


REDUCED = {"precision": "int8", "tolerance": {"mu_in_sigma": 0.1, "psnr_db": 35}}
