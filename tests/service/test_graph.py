"""Graphs that are not what their signature says, that run out of memory, that run on a device which is there or not."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail

from service import graph as graph_module
from service.bundle import read
from service.engine import Engine, signatures
from service.errors import OutOfMemory
from service.graph import Graph, resolve_device
from service.machine import BadEngine
from service.manifest import DECODER, ENCODER, SCORER
from service.stop import Stop
from tests.service.broken import (
    edited,
    made,
    renamed,
    with_constant,
    with_dimension,
    with_external,
    with_last,
    with_type,
)
from tests.service.devices import NO_CUDA
from tests.service.linear import Bundles, Linear
from tests.service.refusals import of_four_rows, refusal, started, with_graph
from tests.service.wire import pixels


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


@pytest.mark.skipif(not NO_CUDA, reason="this onnxruntime has CUDA")
def test_cuda_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(BadEngine, match="device cuda: the installed onnxruntime has no CUDAExecutionProvider, install"):
        resolve_device("cuda")


@pytest.mark.parametrize(
    ("flags", "is_exact"),
    [
        ({"sse4_1", "avx2"}, True),
        ({"sse4_1", "avx2", "avx512f", "avx512bw"}, True),
        ({"sse4_1", "avx512_vnni"}, False),
        ({"sse4_1", "avx_vnni"}, False),
        ({"asimd", "asimddp"}, False),
        (set(), False),
    ],
)
def test_int8_is_exact_where_quick_sums_would_saturate(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch, flags: set[str], is_exact: bool
) -> None:
    given: list[ort.SessionOptions] = []
    real = ort.InferenceSession

    def session(content: bytes, options: ort.SessionOptions, **others: Any) -> Any:
        given.append(options)
        return real(content, options, **others)

    monkeypatch.setattr(graph_module, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(graph_module.ort, "InferenceSession", session)
    Engine(read(bundles.colour), device="cpu", threads=1)
    for options in given:
        if is_exact:
            assert options.get_session_config_entry("session.x64quantprecision") == "1"
        else:
            with pytest.raises(RuntimeError, match="not have configuration"):
                options.get_session_config_entry("session.x64quantprecision")
    assert given


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
