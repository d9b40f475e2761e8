"""Graphs that are not what their manifest says, devices that are not there, processes that stop with a sentence."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail

from service import engine as engine_module
from service import graph as graph_module
from service import machine
from service.bundle import BadBundle, read
from service.deployment import deploy
from service.engine import Cost, Engine, rows_of_a_run, signatures
from service.errors import OutOfMemory
from service.graph import Graph, resolve_device
from service.machine import BadEngine, available_cores, require_one_distribution
from service.manifest import DECODER, ENCODER, MANIFEST, PROBE, SCORER
from service.settings import Settings
from service.stop import Stop
from tests.service.broken import (
    copied,
    edit_manifest,
    edited,
    flip_byte,
    made,
    renamed,
    with_claim,
    with_constant,
    with_dimension,
    with_external,
    with_last,
    with_type,
    zipped,
)
from tests.service.linear import Bundles, Linear, fitted_prior, linear, open_linear, write_linear
from tests.service.wire import assert_near, latents, pixels
from tests.serving import stopped

NO_CUDA = "CUDAExecutionProvider" not in ort.get_available_providers()


@pytest.fixture(scope="module")
def engine(bundles: Bundles) -> Engine:
    return Engine(read(bundles.colour), device="cpu", threads=1)


@pytest.mark.parametrize(
    "text",
    [
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 81920",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
        "CUBLAS failure 3: the resource allocation failed ; GPU=0",
        "Memory allocation failed. Size=81920",
        "cudnn status: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "std::bad_alloc",
    ],
)
def test_what_an_engine_says_of_memory_is_told_from_all_else(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    said = [text]

    def run(*_: object) -> None:
        raise RuntimeError(said[0])

    monkeypatch.setattr(engine.encoder, "_session", SimpleNamespace(run=run))
    with pytest.raises(OutOfMemory, match=r"encoder\.onnx: the device has no memory for 3 rows now"):
        engine.encoder.run(pixels(3, (6, 5, 3)))
    said[0] = "Non-zero status code returned while running Reshape node"
    with pytest.raises(RuntimeError, match="Reshape"):
        engine.encoder.run(pixels(3, (6, 5, 3)))


def test_a_run_that_is_asked_to_stop_stops_and_the_next_one_runs(engine: Engine) -> None:
    stop = Stop()
    stop.ask()
    with pytest.raises(Exception, match=r"(?i)terminate"):
        engine.encoder.run(pixels(3, (6, 5, 3)), stop=stop)
    assert engine.encoder.run(pixels(3, (6, 5, 3)))[0].shape == (3, 4)


@pytest.fixture(scope="module")
def open_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("open") / "open"
    model = open_linear()
    write_linear(folder, model, scorer=model.scorer())
    return Engine(read(folder), device="cpu", threads=1)


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


@pytest.mark.parametrize("n", [1, 2, 7, 33])
def test_the_graphs_give_what_numpy_gives(engine: Engine, colour: Linear, n: int) -> None:
    image, z = pixels(n, colour.shape), latents(n, colour.latent_shape)
    for found, expected in zip(engine.encoder.run(image), colour.encode(image), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    (decoded,) = engine.decoder.run(z)
    assert_near(decoded, colour.decode(z))


@settings(max_examples=30)
@given(n=st.integers(1, 20), start=st.integers(0, 19), count=st.integers(1, 20))
def test_together_equals_apart(engine: Engine, n: int, start: int, count: int) -> None:
    image = pixels(n, (6, 5, 3))
    part = slice(start % n, start % n + count)
    for whole, alone in zip(engine.encoder.run(image), engine.encoder.run(image[part]), strict=True):
        np.testing.assert_allclose(whole[part], alone, atol=1e-5)


def test_an_engine_says_where_it_runs(engine: Engine) -> None:
    assert engine.provider == "CPUExecutionProvider"
    assert engine.threads == 1
    assert engine.precision == "fp32"


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells the largest memory of a program apart from its parent's"
)
def test_graphs_compute_in_one_arena_of_memory(tmp_path: Path) -> None:
    write_linear(tmp_path / "wide", linear((64, 64, 3), (2,)))
    script = """
import re, sys
from pathlib import Path
from service.bundle import read
from service.engine import Engine

bundle, peaks, engines = read(Path(sys.argv[1])), [], []
for _ in range(3):
    engines.append(Engine(bundle, device="cpu", threads=1))
    engines[-1].warm(512, 10**8)
    peaks.append(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(*peaks)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "wide")], capture_output=True, text=True, check=True
    )
    first, _, third = (int(peak) for peak in done.stdout.split())
    assert third < 1.1 * first


def test_graphs_of_larger_rows_are_held_on_all_cores_and_on_one_with_the_same_answers(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_SMALL_ROW_US", 0.0)
    engine = Engine(read(bundles.colour), device="cpu", threads=0, cores=2)
    assert {name: graph.threads for name, graph in engine.singles.items()} == {ENCODER: 1, DECODER: 1}
    assert engine.encoder.threads == engine.decoder.threads == 2
    image = pixels(7, (6, 5, 3))
    for together, apart in zip(engine.encoder.run(image), engine.singles[ENCODER].run(image), strict=True):
        np.testing.assert_array_equal(together, apart)


@pytest.mark.parametrize(
    ("threads", "cores", "largest"),
    [(0, 2, 0), (2, 2, 2**20), (0, 1, 2**20)],
    ids=["very large", "threads were asked for", "one core"],
)
def test_other_graphs_are_held_once(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch, threads: int, cores: int, largest: int
) -> None:
    monkeypatch.setattr(engine_module, "_SMALL_ROW_US", 0.0)
    monkeypatch.setattr(engine_module, "_HELD_TWICE_BYTES", largest)
    engine = Engine(read(bundles.colour), device="cpu", threads=threads, cores=cores)
    assert not engine.singles
    assert engine.threads == cores


@pytest.mark.parametrize("shared", [False, True])
def test_a_scorer_gives_what_numpy_gives(tmp_path: Path, colour: Linear, shared: bool) -> None:
    write_linear(tmp_path / "b", colour, scorer=colour.scorer(shared=shared))
    engine = started(tmp_path / "b")
    assert engine.scorer
    image, z = pixels(5, colour.shape), latents(5, colour.latent_shape)
    (found,) = engine.scorer.run(image, z)
    np.testing.assert_allclose(found, colour.log_likelihood(image, z), rtol=1e-5)


def test_weights_of_a_scorer_come_from_memory_whatever_lies_on_the_disk(
    tmp_path: Path, colour: Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_linear(tmp_path / "b", colour, scorer=colour.scorer(shared=True))
    bundle = read(tmp_path / "b")
    (tmp_path / DECODER).write_bytes(bytes(len(bundle.decoder)))
    monkeypatch.chdir(tmp_path)  # where onnxruntime looks for the files of a graph that has no path
    assert Engine(bundle, device="cpu", threads=1).scorer


def test_an_autoencoder_gives_mu_alone(tmp_path: Path, colour: Linear) -> None:
    write_linear(tmp_path / "b", replace(colour, family="autoencoder"), scorer=colour.scorer())
    engine = started(tmp_path / "b")
    image = pixels(3, colour.shape)
    (mu,) = engine.encoder.run(image)
    np.testing.assert_allclose(mu, colour.encode(image)[0], atol=1e-5)
    assert engine.scorer


@pytest.mark.parametrize(("height", "width"), [(16, 16), (4, 4), (8, 20), (64, 12)])
def test_open_sizes_give_what_numpy_gives(open_engine: Engine, height: int, width: int) -> None:
    model = open_linear()
    image = pixels(3, (height, width, 3))
    z = latents(3, (2, height // 4, width // 4))
    for found, expected in zip(open_engine.encoder.run(image), model.encode(image), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    (decoded,) = open_engine.decoder.run(z)
    assert_near(decoded, model.decode(z))
    assert open_engine.scorer
    (found,) = open_engine.scorer.run(image, z)
    np.testing.assert_allclose(found, model.log_likelihood(image, z), rtol=1e-5)


@pytest.mark.parametrize(
    ("pixels", "rows"), [(1, 32), (1000, 32), (62_500, 32), (62_501, 31), (2**20, 1), (2_000_001, 1)]
)
def test_a_run_holds_as_many_rows_as_pixels_and_rows_allow(pixels: int, rows: int) -> None:
    assert rows_of_a_run(pixels, max_batch_rows=32, max_run_pixels=2_000_000) == rows


def test_warming_keeps_to_the_pixels_of_a_run(tmp_path: Path) -> None:
    """The encoder loses rows above four; a picture of the default size has 256 pixels."""
    model = open_linear()
    folder = made(tmp_path / "b", model, encoder=with_last(model.encoder(), "mu", "Slice", FIRST_FOUR_ROWS))
    started(folder, max_run_pixels=7 * 256)
    started(folder, max_batch_rows=7)
    started(folder, max_run_pixels=1)
    assert refusal(folder, max_run_pixels=8 * 256) == (
        f"{folder / ENCODER}: on 8 rows mu is (4, 2, 4, 4), expected [8, 2, free, free]"
    )


# Wrong graphs


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, colour: Linear) -> None:
    folder = made(tmp_path / "b", colour, encoder=b"\x00garbage\xff" * 9)
    assert refusal(folder) == f"{folder / ENCODER}: has a field without a number, expected ONNX"


def test_what_looks_like_onnxruntimes_own_format_is_read_as_onnx(tmp_path: Path, colour: Linear) -> None:
    """Bytes 4 to 8 say what onnxruntime takes a file for; here they are part of a text that ONNX may begin with."""
    folder = made(tmp_path / "b", colour, encoder=b"\x32\x06__ORTM" + colour.encoder())
    assert started(folder).encoder.opset == 20


def test_an_operator_that_does_not_exist_is_refused(tmp_path: Path, colour: Linear) -> None:
    folder = made(tmp_path / "b", colour, decoder=with_last(colour.decoder(), "image", "RunThis", {}))
    assert refusal(folder).startswith(f"{folder / DECODER}: onnxruntime refuses it (")


def test_a_graph_of_another_opset_than_is_known_is_refused(tmp_path: Path, colour: Linear) -> None:
    model = onnx.load_from_string(colour.encoder())
    model.opset_import[0].version = 9999
    folder = made(tmp_path / "b", colour, encoder=model.SerializeToString())
    assert refusal(folder) == f"{folder / ENCODER}: opset is 9999, expected 1 to 20"


def test_a_manifest_of_another_opset_than_its_graphs_is_refused(tmp_path: Path, colour: Linear) -> None:
    folder = made(tmp_path / "b", colour, opset=19)
    assert refusal(folder) == f"{folder / MANIFEST}: opset is 19, its graphs have 20"


@pytest.mark.parametrize("file", [ENCODER, DECODER, SCORER])
def test_a_graph_with_noise_is_refused(tmp_path: Path, colour: Linear, file: str) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        graph.node.append(onnx.helper.make_node("RandomNormal", [], ["unused"], shape=[4]))

    folder = with_graph(tmp_path / "b", colour, file, lambda graph: edited(graph, edit))
    assert refusal(folder) == f"{folder / file}: draws random numbers (RandomNormal), expected no noise in graphs"


@pytest.mark.parametrize("file", [ENCODER, DECODER, SCORER])
def test_a_graph_with_an_operator_of_another_domain_is_refused(tmp_path: Path, colour: Linear, file: str) -> None:
    output = {ENCODER: "mu", DECODER: "image", SCORER: "log_likelihood"}[file]

    def edit(graph: bytes) -> bytes:
        return with_last(graph, output, "Gelu", {}, domain="com.microsoft")

    folder = with_graph(tmp_path / "b", colour, file, edit)
    sentence = f"{folder / file}: has the operator 'com.microsoft.Gelu', expected those of ONNX alone"
    assert refusal(folder) == sentence


@pytest.mark.parametrize(("file", "weight"), [(ENCODER, "a"), (DECODER, "d")])
@pytest.mark.parametrize("location", ["decoder.onnx", "../weights.bin", "/etc/passwd"])
def test_encoder_and_decoder_hold_their_own_bytes(
    tmp_path: Path, colour: Linear, file: str, weight: str, location: str
) -> None:
    def edit(graph: bytes) -> bytes:
        return with_external(graph, weight, {"location": location, "offset": 0, "length": 1440})

    folder = with_graph(tmp_path / "b", colour, file, edit)
    sentence = f"{folder / file}: tensor '{weight}' lies in '{location}', expected it in the graph itself"
    assert refusal(folder) == sentence


def test_a_scorer_takes_bytes_from_its_decoder_alone(tmp_path: Path, colour: Linear) -> None:
    def edit(graph: bytes) -> bytes:
        return with_external(graph, "half", {"location": "encoder.onnx", "offset": 0, "length": 4})

    folder = with_graph(tmp_path / "b", colour, SCORER, edit)
    said = "tensor 'half' lies in 'encoder.onnx', expected it in the graph itself or decoder.onnx"
    assert refusal(folder) == f"{folder / SCORER}: {said}"


@pytest.mark.parametrize("file", [ENCODER, DECODER])
def test_a_graph_with_a_weight_that_is_nan_is_refused(tmp_path: Path, colour: Linear, file: str) -> None:
    weight, array = ("a", colour.a) if file == ENCODER else ("d", colour.d)
    wrong = array.copy()
    wrong[1, 2] = np.nan
    folder = with_graph(tmp_path / "b", colour, file, lambda graph: with_constant(graph, weight, wrong))
    assert refusal(folder) == f"{folder / file}: tensor '{weight}' holds NaN, expected numbers"


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (ENCODER, "image", "picture", "inputs are ['picture'], the bundle format has ['image']"),
        (ENCODER, "mu", "mean", "outputs are ['logvar', 'mean'], the bundle format has ['logvar', 'mu']"),
        (DECODER, "z", "latent", "inputs are ['latent'], the bundle format has ['z']"),
        (DECODER, "image", "x", "outputs are ['x'], the bundle format has ['image']"),
    ],
)
def test_a_wrong_name_of_an_input_or_output_is_refused(
    tmp_path: Path, colour: Linear, file: str, old: str, new: str, said: str
) -> None:
    graph = renamed(colour.encoder() if file == ENCODER else colour.decoder(), old, new)
    folder = made(tmp_path / "b", colour, **{file.removesuffix(".onnx"): graph})  # type: ignore[arg-type]
    assert refusal(folder) == f"{folder / file}: {said}"


def test_an_input_too_many_is_refused(tmp_path: Path, colour: Linear) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        graph.input.append(onnx.helper.make_tensor_value_info("noise", onnx.TensorProto.FLOAT, ["n", 4]))

    folder = made(tmp_path / "b", colour, decoder=edited(colour.decoder(), edit))
    assert refusal(folder) == f"{folder / DECODER}: inputs are ['noise', 'z'], the bundle format has ['z']"


def test_a_wrong_dtype_is_refused(tmp_path: Path, colour: Linear) -> None:
    graph = with_type(colour.encoder(), "image", onnx.TensorProto.FLOAT)
    folder = made(tmp_path / "b", colour, encoder=graph)
    assert refusal(folder) == (
        f"{folder / ENCODER}: image is tensor(float) ['n', 6, 5, 3], the manifest says tensor(uint8) [free, 6, 5, 3]"
    )


@pytest.mark.parametrize(
    ("axis", "size", "found"),
    [
        (1, 7, "['n', 7, 5, 3]"),
        (3, 1, "['n', 6, 5, 1]"),
        (2, "w", "['n', 6, 'w', 3]"),
        (0, 1, "[1, 6, 5, 3]"),
        (0, 4, "[4, 6, 5, 3]"),
    ],
    ids=["height", "channels", "open width", "batch of one", "batch of four"],
)
def test_a_wrong_shape_or_a_fixed_batch_is_refused(
    tmp_path: Path, colour: Linear, axis: int, size: int | str, found: str
) -> None:
    folder = made(tmp_path / "b", colour, encoder=with_dimension(colour.encoder(), "image", axis, size))
    sentence = f"{folder / ENCODER}: image is tensor(uint8) {found}, the manifest says tensor(uint8) [free, 6, 5, 3]"
    assert refusal(folder) == sentence


def test_a_graph_for_another_models_shape_is_refused(tmp_path: Path, colour: Linear, grey: Linear) -> None:
    folder = made(tmp_path / "b", colour, decoder=grey.decoder())
    sentence = "z is tensor(float) ['n', 2, 3, 2], the manifest says tensor(float) [free, 4]"
    assert refusal(folder) == f"{folder / DECODER}: {sentence}"


FIRST_FOUR_ROWS = {"starts": np.array([0]), "ends": np.array([4])}


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


def test_a_batch_that_is_fixed_inside_the_graph_is_found_before_serving(tmp_path: Path, colour: Linear) -> None:
    folder = made(tmp_path / "b", colour, decoder=of_four_rows(colour))
    assert refusal(folder).startswith(f"{folder / DECODER}: fails on 1 rows (")


def test_a_graph_that_mixes_its_rows_into_one_is_refused(tmp_path: Path, colour: Linear) -> None:
    graph = with_last(colour.encoder(), "mu", "ReduceMean", {"axes": np.array([0])}, keepdims=1)
    folder = made(tmp_path / "b", colour, encoder=graph)
    sentence = "mu is tensor(float) [1, 4], the manifest says tensor(float) [free, 4]"
    assert refusal(folder) == f"{folder / ENCODER}: {sentence}"


def test_a_graph_that_loses_rows_is_refused(tmp_path: Path, colour: Linear) -> None:
    cut = {"starts": np.array([0]), "ends": np.array([3])}
    folder = made(tmp_path / "b", colour, encoder=with_last(colour.encoder(), "mu", "Slice", cut))
    assert refusal(folder) == f"{folder / ENCODER}: on 4 rows mu is (3, 4), expected [4, 4]"


@pytest.mark.parametrize("name", ["mu", "logvar", "z", "decoded"])
def test_answers_other_than_the_probes_are_refused(tmp_path: Path, colour: Linear, name: str) -> None:
    probe = colour.probe()
    array = getattr(probe, name).copy()
    array[2] += 3
    folder = made(tmp_path / "b", colour, probe=replace(probe, **{name: array}))
    file, output = (ENCODER, name) if name in {"mu", "logvar"} else (DECODER, "image")
    sentence = refusal(folder)
    assert sentence.startswith(f"{folder / file}: {output} differs from the probe by ")
    assert sentence.endswith(f", the tolerance is {1 if output == 'image' else 0.0001:g}")


@pytest.mark.parametrize(("difference", "refused"), [(0.9e-4, False), (1.2e-4, True)])
def test_the_manifests_tolerance_is_the_bound(tmp_path: Path, colour: Linear, difference: float, refused: bool) -> None:
    probe = colour.probe()
    folder = made(tmp_path / "b", colour, probe=replace(probe, mu=probe.mu + np.float32(difference)))
    if refused:
        assert "mu differs from the probe by 0.00012" in refusal(folder)
    else:
        Engine(read(folder), device="cpu", threads=1)


@pytest.mark.parametrize("output", ["mu", "logvar"])
def test_a_graph_that_gives_infinity_is_refused(tmp_path: Path, colour: Linear, output: str) -> None:
    weight = {"mu": "a", "logvar": "b"}[output]
    graph = with_constant(colour.encoder(), weight, np.full_like(colour.a, np.inf))
    folder = made(tmp_path / "b", colour, encoder=graph)
    assert refusal(folder) == f"{folder / ENCODER}: on 4 rows {output} holds NaN or infinity, expected numbers"


def test_a_nan_in_the_probe_itself_is_refused(tmp_path: Path, colour: Linear) -> None:
    probe = colour.probe()
    folder = made(tmp_path / "b", colour, probe=replace(probe, mu=np.full_like(probe.mu, np.nan)))
    assert "encoder.onnx: mu differs from the probe by nan" in refusal(folder)


@pytest.mark.parametrize(("share", "is_refused"), [(0.9e-4, False), (1.2e-4, True)])
def test_a_scorers_answers_are_compared_by_their_size(
    tmp_path: Path, colour: Linear, share: float, is_refused: bool
) -> None:
    probe = colour.probe()
    score = colour.log_likelihood(probe.image, probe.z)
    assert np.abs(score).min() > 1000
    probe = replace(probe, log_likelihood=score * np.float32(1 + share))
    folder = made(tmp_path / "b", colour, scorer=colour.scorer(), probe=probe)
    if is_refused:
        said = "log_likelihood differs from the probe by 0.00012, the tolerance is 0.0001"
        assert refusal(folder) == f"{folder / SCORER}: {said}"
    else:
        assert started(folder).scorer


def test_answers_that_only_stretch_to_the_probes_shape_are_refused(tmp_path: Path) -> None:
    """One place of a latent, compared with sixteen, would be compared with each of them."""
    model = open_linear()
    constant = replace(model, a=model.a * 0, b=model.b * 0)
    one_place = {"starts": np.array([0, 0]), "ends": np.array([1, 1]), "axes": np.array([2, 3])}
    graph = with_last(constant.encoder(), "mu", "Slice", one_place)
    folder = made(tmp_path / "b", constant, encoder=graph)
    sentence = f"{folder / ENCODER}: mu is (4, 2, 1, 1) on the probe, expected (4, 2, 4, 4)"
    assert refusal(folder) == sentence


@pytest.mark.parametrize("head", ["logvar", "sigma"])
def test_a_small_sigma_of_a_converted_head_is_compared_as_sigma(tmp_path: Path, colour: Linear, head: str) -> None:
    narrow = replace(colour, b=colour.b * 0 - np.float32(1))  # logvar is minus the sum of x, 90 numbers in [0, 1]
    probe = narrow.probe()
    assert probe.logvar is not None
    assert np.exp(probe.logvar / 2).max() < 1e-3
    probe = replace(probe, logvar=probe.logvar + np.float32(0.01))
    folder = made(tmp_path / "b", narrow, probe=probe, scale_head=head)
    if head == "sigma":
        assert started(folder)
    else:
        assert refusal(folder) == f"{folder / ENCODER}: logvar differs from the probe by 0.01, the tolerance is 0.0001"


# Below fp32

REDUCED = {"precision": "int8", "tolerance": {"mu_in_sigma": 0.1, "psnr_db": 35}}


@pytest.mark.parametrize(("share", "said"), [(0.09, None), (0.11, "0.11 sigma, the tolerance is 0.1 sigma")])
@pytest.mark.parametrize("scale", [0.1, 1, 10])
def test_below_fp32_mu_is_compared_in_sigma(
    tmp_path: Path, colour: Linear, share: float, said: str | None, scale: float
) -> None:
    """The same share of each sigma, of whatever size they are."""
    model = replace(colour, b=colour.b * np.float32(scale))
    probe = model.probe()
    assert probe.logvar is not None
    moved = probe.mu + np.float32(share) * np.exp(probe.logvar / 2)
    folder = made(tmp_path / "b", model, probe=replace(probe, mu=moved), **REDUCED)
    if said is None:
        assert started(folder).precision == "int8"
    else:
        assert refusal(folder) == f"{folder / ENCODER}: mu differs from the probe by {said}"


def test_below_fp32_an_autoencoders_mu_is_compared_in_its_spread(tmp_path: Path, colour: Linear) -> None:
    model = replace(colour, family="autoencoder", a=colour.a * 1000)
    probe = model.probe()
    spread = probe.mu.std()
    for share, name in ((0.09, "within"), (0.11, "beyond")):
        made(tmp_path / name, model, probe=replace(probe, mu=probe.mu + np.float32(share * spread)), **REDUCED)
    assert started(tmp_path / "within").precision == "int8"
    said = "mu differs from the probe by 0.11 sigma, the tolerance is 0.1 sigma"
    assert refusal(tmp_path / "beyond") == f"{tmp_path / 'beyond' / ENCODER}: {said}"


@pytest.mark.parametrize(("levels", "said"), [(4, None), (5, "is 34.2 dB from the probe's, the tolerance is 35 dB")])
def test_below_fp32_pictures_are_compared_by_their_psnr(
    tmp_path: Path, colour: Linear, levels: int, said: str | None
) -> None:
    probe = colour.probe()
    further = np.where(probe.decoded < 128, probe.decoded + levels, probe.decoded - levels).astype(np.uint8)
    folder = made(tmp_path / "b", colour, probe=replace(probe, decoded=further), **REDUCED)
    if said is None:
        assert started(folder)
    else:
        assert refusal(folder) == f"{folder / DECODER}: image {said}"


def test_below_fp32_a_logvar_that_is_no_number_is_refused(tmp_path: Path, colour: Linear) -> None:
    graph = with_constant(colour.encoder(), "b", np.full_like(colour.b, np.inf))
    folder = made(tmp_path / "b", colour, encoder=graph, **REDUCED)
    assert refusal(folder) == f"{folder / ENCODER}: on 4 rows logvar holds NaN or infinity, expected numbers"


# One wrong number in the manifest

NOTHING = {"max": 0.0, "mean": 0.0}
PARITY = {"mu": NOTHING, "logvar": NOTHING, "image": NOTHING, "shapes": [[4, 6, 5]], "pictures": 4}
FULL = {
    "likelihood": {"kind": "gaussian", "sigma": 0.1, "binarised_at": 128},
    "latent_scale": 0.18,
    "latent_shift": 0.5,
    "parity": PARITY | {"log_likelihood": NOTHING, "mu_in_sigma": NOTHING, "psnr_db": 50.0},
    "diagnostics": {
        "kl_per_dimension": [1.0, 2.0, 0.5, 0.0],
        "active_units": 1,
        "active_dimensions": [0],
        "mu_min": -1.0,
        "mu_max": 1.0,
        "aggregate": {"mean": [0.0], "variance": [1.0], "largest_correlation": 0.1, "mmd": 0.0, "mmd_spread": 0.1},
        "samples": {
            "standard": {"density": 1.0, "expected_density": 1.0, "coverage": 0.9, "expected_coverage": 0.9},
            "fitted": None,
        },
    },
    "metrics": {"elbo": -90.5},
}
INT8 = FULL | REDUCED | {
    "variant": {"encoder_speedup": 1.5, "decoder_speedup": 1.5, "batch_rows": 32, "size_ratio": 0.3, "machine": "a"}
}  # fmt: skip

# What may be wrong unseen, since no answer hangs on it: the graphs that answer are what was hashed. A tolerance is a
# report too where the graphs keep to it; `diagnostics` choose the order in which /traverse takes dimensions.
REPORTS = ("latent_scale", "latent_shift", "parity", "tolerance", "variant", "diagnostics", "metrics")


def numbers(plain: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The places of all numbers in a manifest."""
    if isinstance(plain, dict | list):
        for key, part in plain.items() if isinstance(plain, dict) else enumerate(plain):
            yield from numbers(part, (*place, key))
    elif isinstance(plain, int | float):
        yield place


def change(plain: Any, place: tuple[str | int, ...], by: int) -> None:
    *way, last = place
    for key in way:
        plain = plain[key]
    plain[last] += by


def full(folder: Path, kind: str) -> dict[str, Any]:
    """A bundle whose manifest has a number wherever it can, as plain JSON."""
    colour = linear((6, 5, 3), (4,), seed=0)
    if kind == "open":
        write_linear(folder, open_linear())
    else:
        write_linear(
            folder, colour, scorer=colour.scorer(), fitted=fitted_prior(), **(INT8 if kind == "int8" else FULL)
        )
    plain: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return plain


def fault(folder: Path) -> str | None:
    """The one sentence that the bundle is refused with, if it is."""
    try:
        started(folder)
    except BadBundle as error:
        return str(error)
    return None


@pytest.mark.parametrize("by", [1, -1])
@pytest.mark.parametrize("kind", ["fp32", "int8", "open"])
def test_a_manifest_with_one_wrong_number_is_refused_unless_the_number_is_a_report(
    tmp_path: Path, kind: str, by: int
) -> None:
    folder = tmp_path / kind
    sound = full(folder, kind)
    assert fault(folder) is None
    for place in numbers(sound):
        edit_manifest(folder, lambda plain, place=place: change(plain, place, by))
        found = fault(folder)
        (folder / MANIFEST).write_text(json.dumps(sound))
        assert place[0] in REPORTS if found is None else re.fullmatch(rf"{folder}/\S+: .+", found), place


@pytest.mark.parametrize("kind", ["fp32", "int8", "open"])
def test_the_wrong_numbers_are_all_of_a_manifest(tmp_path: Path, kind: str) -> None:
    places = {".".join(map(str, place)) for place in numbers(full(tmp_path / kind, kind))}
    size = {"image.default_side", "image.max_side"} if kind == "open" else {"image.height", "image.width"}
    files = {f"files.{name}.size_bytes" for name in (ENCODER, DECODER, PROBE)}
    assert places >= {"format", "image.stride", "image.channels", "latent_shape.0", "opset", *size, *files}


def test_two_bundles_of_one_name_are_refused(tmp_path: Path, bundles: Bundles, grey: Linear) -> None:
    write_linear(tmp_path / "other", grey, name="colour")
    with pytest.raises(BadBundle, match=f"{tmp_path / 'other'}: a model named colour is loaded already"):
        deploy(Settings(bundles=(bundles.colour, tmp_path / "other")))


# Devices, distributions, cores


@pytest.mark.skipif(not NO_CUDA, reason="this onnxruntime has CUDA")
def test_cuda_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(BadEngine, match="device cuda: the installed onnxruntime has no CUDAExecutionProvider, install"):
        resolve_device("cuda")


def test_what_others_use_meanwhile_is_no_cost_of_a_graph(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a bundle is loaded while another one serves."""
    seconds = iter(range(10_000))
    monkeypatch.setattr(engine_module, "process_time", lambda: float(next(seconds)))
    made = Engine(read(bundles.colour), device="cpu", threads=0, cores=4)
    assert (made.encoder.threads, made.decoder.threads) == (1, 1)


class Cuda:
    """Sessions that say they run on a GPU; their graphs run on the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.options: list[dict[str, str]] = []
        self.error: Exception | None = None
        real = ort.InferenceSession

        def session(content: bytes, options: Any, *, providers: list[Any], enable_fallback: bool) -> Any:
            ((provider, given),) = providers
            assert (provider, enable_fallback) == ("CUDAExecutionProvider", False)
            self.options.append(given)
            if self.error:
                raise self.error
            made = real(content, options, providers=["CPUExecutionProvider"])
            monkeypatch.setattr(made, "get_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
            return made

        monkeypatch.setattr(graph_module.ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
        monkeypatch.setattr(graph_module.ort, "preload_dlls", lambda: None)
        monkeypatch.setattr(graph_module.ort, "InferenceSession", session)


def test_on_a_gpu_graphs_compute_in_float32_and_take_the_memory_they_need(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = Cuda(monkeypatch)
    made = Engine(read(bundles.colour), device="cuda", threads=0)
    assert (made.provider, made.device) == ("CUDAExecutionProvider", "cuda")
    expected = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
    assert cuda.options == [expected] * 2
    cuda.options.clear()
    bundle = read(bundles.colour)
    content, signature = bundle.encoder, signatures(bundle.manifest.image.shape, (4,), family="vae")[ENCODER]
    Graph(content, signature, path=Path(ENCODER), device="cuda", threads=1, is_fp32=False)
    assert "use_tf32" not in cuda.options[0]


def test_a_gpu_that_does_not_start_is_told_with_its_reason(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    cuda.error = RuntimeError("CUDA failure 100: no CUDA-capable device is detected\nwhere it stood")
    expected = "device cuda: CUDAExecutionProvider did not start (CUDA failure 100: no CUDA-capable device is detected)"
    with pytest.raises(BadEngine, match=re.escape(expected)):
        Engine(read(bundles.colour), device="cuda", threads=0)


def test_a_run_that_its_provider_fails_is_not_done_elsewhere(
    bundles: Bundles, colour: Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime's fallback would make another session in the place of this one, and answer from it."""
    graph = Engine(read(bundles.colour), device="cpu", threads=1).encoder

    def run(*_: object) -> None:
        raise EPFail("the device is gone")

    told = SimpleNamespace(run=run, is_webgpu_graph_capture_enabled=lambda: False)
    monkeypatch.setattr(graph._session, "_sess", told)  # noqa: SLF001
    with pytest.raises(EPFail, match="the device is gone"):
        graph.run(pixels(1, colour.shape))


@pytest.mark.skipif(not NO_CUDA, reason="this onnxruntime has CUDA")
def test_auto_takes_the_cpu_where_there_is_no_cuda() -> None:
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"


@pytest.mark.parametrize(("gpu", "device"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_a_gpu_where_provider_and_device_are_both_there(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, device: str
) -> None:
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(graph_module.ort, "get_available_providers", lambda: providers)
    monkeypatch.setattr(graph_module, "_has_gpu", lambda: gpu)
    assert resolve_device("auto") == device


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Pretend that exactly these distributions are installed."""

    def version(name: str) -> str:
        if name in names:
            return "1.30.0"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"])
def test_one_distribution_of_onnxruntime_is_right(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    installed(monkeypatch, name)
    assert require_one_distribution() == f"{name} 1.30.0"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ((), "none"),
        (("onnxruntime", "onnxruntime-gpu"), "onnxruntime 1.30.0 and onnxruntime-gpu 1.30.0"),
        (("onnxruntime-gpu", "onnxruntime-openvino"), "onnxruntime-gpu 1.30.0 and onnxruntime-openvino 1.30.0"),
    ],
)
def test_none_or_two_distributions_of_onnxruntime_are_refused(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], found: str
) -> None:
    installed(monkeypatch, *names)
    with pytest.raises(BadEngine, match=f"onnxruntime: got {found}, expected exactly one distribution; install one of"):
        require_one_distribution()


def version_2(root: Path, text: str) -> None:
    (root / "cpu.max").write_text(text)


def version_1(root: Path, text: str) -> None:
    (root / "cpu").mkdir()
    quota, period = text.split()
    (root / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (root / "cpu" / "cpu.cfs_period_us").write_text(period + "\n")


@pytest.mark.parametrize(
    ("write", "text", "quota"),
    [
        (version_2, "max 100000\n", None),
        (version_2, "200000 100000\n", 2.0),
        (version_2, "150000 100000\n", 1.5),
        (version_2, "5000 100000\n", 0.05),
        (version_1, "-1 100000", None),
        (version_1, "300000 100000", 3.0),
    ],
)
def test_the_cgroups_quota_is_read(
    tmp_path: Path, write: Callable[[Path, str], None], text: str, quota: float | None
) -> None:
    write(tmp_path, text)
    assert machine._cgroup_quota(tmp_path, within=Path()) == quota  # noqa: SLF001


def test_a_cgroup_is_bounded_by_those_above_it(tmp_path: Path) -> None:
    """As a unit of systemd is, in its slice; the root of the tree has no such file."""
    unit = tmp_path / "system.slice" / "vae.service"
    unit.mkdir(parents=True)
    within = unit.relative_to(tmp_path)
    (unit / "cpu.max").write_text("300000 100000\n")
    assert machine._cgroup_quota(tmp_path, within=within) == 3  # noqa: SLF001
    (unit.parent / "cpu.max").write_text("150000 100000\n")
    assert machine._cgroup_quota(tmp_path, within=within) == 1.5  # noqa: SLF001
    (unit.parent / "cpu.max").write_text("max 100000\n")
    assert machine._cgroup_quota(tmp_path, within=within) == 3  # noqa: SLF001


@pytest.mark.parametrize(
    ("told", "place"),
    [
        ("0::/system.slice/a.service\n", "system.slice/a.service"),
        ("0::/\n", "."),
        ("4:cpu:/a\n0::/b\n", "b"),
        ("", "."),
    ],
)
def test_a_process_knows_its_cgroup(tmp_path: Path, told: str, place: str) -> None:
    (tmp_path / "cgroup").write_text(told)
    assert machine._own_cgroup(tmp_path / "cgroup") == Path(place)  # noqa: SLF001
    assert machine._own_cgroup(tmp_path / "nowhere") == Path()  # noqa: SLF001


def test_no_cgroup_sets_no_bound(tmp_path: Path) -> None:
    assert machine._cgroup_quota(tmp_path, within=Path()) is None  # noqa: SLF001


@pytest.mark.parametrize(("quota", "affinity", "cores"), [(None, 6, 6), (2.5, 6, 2), (0.5, 6, 1), (16.0, 6, 6)])
def test_cores_are_the_affinity_bounded_by_the_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, affinity: int, cores: int
) -> None:
    monkeypatch.setattr(machine, "_cgroup_quota", lambda _root, **_within: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(affinity)), raising=False)
    assert available_cores() == cores


# The process


def test_a_process_with_a_changed_graph_stops_with_one_sentence(tmp_path: Path, bundles: Bundles) -> None:
    folder = copied(bundles.colour, tmp_path / "colour")
    flip_byte(folder / ENCODER)
    assert stopped(str(folder)).startswith(f"{folder / ENCODER}: sha256 is ")


def wrong_zip(folder: Path, colour: Linear, *, claim: bool) -> tuple[Path, str]:
    """A zip that claims three gigabytes, or one that was cut, and how its sentence begins."""
    path = zipped(made(folder, colour), folder.with_suffix(".zip"))
    if claim:
        with_claim(path, ENCODER, size=3_000_000_000)
        return path, f"{path / ENCODER}: claims 3000000000 bytes in "
    path.write_bytes(path.read_bytes()[:-1000])
    return path, f"{path}: File is not a zip file, expected a bundle, which is a folder or one zip"


def wrong_graph(folder: Path, colour: Linear, *, domain: str = "", operator: str = "") -> tuple[Path, str]:
    """A bundle whose decoder has one operator more, and how its sentence begins."""
    graph = with_last(colour.decoder(), "image", operator, {}, domain=domain)
    return made(folder, colour, decoder=graph), f"{folder / DECODER}: "


def wrong_scorer(folder: Path, colour: Linear) -> tuple[Path, str]:
    """A scorer that wants bytes from outside the bundle."""
    place = {"location": "../../etc/passwd", "offset": 0, "length": 4}
    path = with_graph(folder, colour, SCORER, lambda graph: with_external(graph, "half", place))
    return path, f"{path / SCORER}: tensor 'half' lies in '../../etc/passwd', expected it in "


def wrong_weight(folder: Path, colour: Linear) -> tuple[Path, str]:
    graph = with_constant(colour.encoder(), "a", np.full_like(colour.a, np.nan))
    return made(folder, colour, encoder=graph), f"{folder / ENCODER}: tensor 'a' holds NaN, expected numbers"


def wrong_number(folder: Path, colour: Linear) -> tuple[Path, str]:
    path = made(folder, colour)
    edit_manifest(path, lambda plain: plain["image"].update(width=4))
    return path, f"{path / MANIFEST}: digest is "


@pytest.mark.parametrize(
    "wrong",
    [
        partial(wrong_zip, claim=True),
        partial(wrong_zip, claim=False),
        partial(wrong_graph, operator="RandomNormalLike"),
        partial(wrong_graph, operator="Gelu", domain="com.microsoft"),
        wrong_scorer,
        wrong_weight,
        wrong_number,
    ],
    ids=["three gigabytes", "truncated", "noise", "another domain", "outside", "NaN", "one wrong number"],
)
def test_a_process_with_a_wrong_bundle_stops_with_one_sentence(
    tmp_path: Path, colour: Linear, wrong: Callable[..., tuple[Path, str]]
) -> None:
    path, sentence = wrong(tmp_path / "b", colour)
    assert stopped(str(path)).startswith(sentence)


def test_one_wrong_bundle_among_right_ones_stops_the_process(tmp_path: Path, bundles: Bundles) -> None:
    folder = copied(bundles.colour, tmp_path / "second")
    edit_manifest(folder, lambda plain: plain.update(name="second", format=2))
    said = stopped(str(bundles.grey), str(folder))
    assert said == f"{folder / MANIFEST}: format is 2, this version reads format 1"


def test_a_process_with_a_graph_that_fails_on_some_batch_stops_with_one_sentence(
    tmp_path: Path, colour: Linear
) -> None:
    folder = made(tmp_path / "b", colour, decoder=of_four_rows(colour))
    assert stopped(str(folder)).startswith(f"{folder / DECODER}: fails on 1 rows (")


def test_a_process_with_a_wrong_probe_stops_with_one_sentence(tmp_path: Path, colour: Linear) -> None:
    probe = colour.probe()
    folder = made(tmp_path / "b", colour, probe=replace(probe, mu=probe.mu + 1))
    assert stopped(str(folder)) == f"{folder / ENCODER}: mu differs from the probe by 1, the tolerance is 0.0001"


@pytest.mark.skipif(not NO_CUDA, reason="this onnxruntime has CUDA")
def test_a_process_that_cannot_have_its_device_stops_with_one_sentence(bundles: Bundles) -> None:
    assert stopped(str(bundles.colour), "--device", "cuda").startswith("device cuda: the installed onnxruntime has no")


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        (["--max-batch-rows", "1"], {}, "max_batch_rows: got 1, input should be greater than or equal to 2"),
        (["--device", "tpu"], {}, "device: got 'tpu', input should be 'auto', 'cpu' or 'cuda'"),
        ([], {"VAE_THREADS": "-1"}, "threads: got '-1', input should be greater than or equal to 0"),
    ],
)
def test_a_setting_that_cannot_be_stops_the_process_with_one_sentence(
    bundles: Bundles, arguments: list[str], environment: dict[str, str], sentence: str
) -> None:
    assert stopped(str(bundles.colour), *arguments, environment=environment) == sentence


def test_where_each_core_has_rows_of_its_own_a_run_takes_some_milliseconds(
    tmp_path: Path, colour: Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a graph that is held twice; one of small rows takes as many as it is let."""
    monkeypatch.setattr("service.engine._SMALL_ROW_US", 0.0)
    engine = Engine(read(made(tmp_path / "b", colour)), device="cpu", threads=0, cores=2)
    engine.warm(8, 10**6)
    assert engine.singles
    for row_us, rows in ((4_000.0, 3), (25_000.0, 1), (0.0, sys.maxsize)):
        engine.costs[ENCODER] = Cost(0.0, row_us, row_us)
        assert engine.most_rows(ENCODER) == rows
    del engine.singles[ENCODER]
    engine.costs[ENCODER] = Cost(0.0, 4_000.0, 4_000.0)
    assert engine.most_rows(ENCODER) == sys.maxsize
