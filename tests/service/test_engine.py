"""Graphs that are not what their manifest says, devices that are not there, processes that stop with a sentence."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import engine as engine_module
from service import machine
from service.bundle import DECODER, ENCODER, MANIFEST, BadBundle, read
from service.engine import Engine, resolve_device
from service.machine import BadEngine, available_cores, require_one_distribution
from service.models import deploy
from service.settings import Settings
from tests.service.broken import (
    copied,
    edit_manifest,
    edited,
    flip_byte,
    made,
    renamed,
    with_constant,
    with_dimension,
    with_last,
    with_type,
)
from tests.service.linear import Bundles, Linear, write_linear
from tests.service.wire import assert_near, latents, pixels

NO_CUDA = "CUDAExecutionProvider" not in ort.get_available_providers()


@pytest.fixture(scope="module")
def engine(bundles: Bundles) -> Engine:
    return Engine(read(bundles.colour), device="cpu", threads=1)


def refusal(folder: Path, *, max_batch_rows: int = 8) -> str:
    """The one sentence of a bundle that passes reading and must not be served."""
    bundle = read(folder)
    with pytest.raises(BadBundle) as refused:
        Engine(bundle, device="cpu", threads=1).warm(max_batch_rows)
    sentence = str(refused.value)
    assert "\n" not in sentence
    return sentence


# What a sound engine gives


@pytest.mark.parametrize("n", [1, 2, 7, 33])
def test_the_graphs_give_what_numpy_gives(engine: Engine, colour: Linear, n: int) -> None:
    image, z = pixels(n, colour.shape), latents(n, colour.latent_shape)
    for found, expected in zip(engine.encode(image), colour.encode(image), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert_near(engine.decode(z), colour.decode(z))


@settings(max_examples=30)
@given(n=st.integers(1, 20), start=st.integers(0, 19), count=st.integers(1, 20))
def test_together_equals_apart(engine: Engine, n: int, start: int, count: int) -> None:
    image = pixels(n, (6, 5, 3))
    part = slice(start % n, start % n + count)
    for whole, alone in zip(engine.encode(image), engine.encode(image[part]), strict=True):
        np.testing.assert_allclose(whole[part], alone, atol=1e-5)


def test_an_engine_says_where_it_runs(engine: Engine) -> None:
    assert engine.provider == "CPUExecutionProvider"
    assert engine.threads == 1
    assert engine.precision == "fp32"


# Wrong graphs


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, colour: Linear) -> None:
    folder = made(tmp_path / "b", colour, encoder=b"\x00garbage\xff" * 9)
    assert refusal(folder).startswith(f"{folder / ENCODER}: onnxruntime refuses it (")


def test_an_operator_that_does_not_exist_is_refused(tmp_path: Path, colour: Linear) -> None:
    folder = made(tmp_path / "b", colour, decoder=with_last(colour.decoder(), "image", "RunThis", {}))
    assert refusal(folder).startswith(f"{folder / DECODER}: onnxruntime refuses it (")


def test_a_graph_of_another_opset_than_is_known_is_refused(tmp_path: Path, colour: Linear) -> None:
    model = onnx.load_from_string(colour.encoder())
    model.opset_import[0].version = 9999
    folder = made(tmp_path / "b", colour, encoder=model.SerializeToString())
    assert refusal(folder).startswith(f"{folder / ENCODER}: onnxruntime refuses it (")


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
        f"{folder / ENCODER}: image is tensor(float) ['n', 6, 5, 3], the manifest says tensor(uint8) ['n', 6, 5, 3]"
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
    sentence = f"{folder / ENCODER}: image is tensor(uint8) {found}, the manifest says tensor(uint8) ['n', 6, 5, 3]"
    assert refusal(folder) == sentence


def test_a_graph_for_another_models_shape_is_refused(tmp_path: Path, colour: Linear, grey: Linear) -> None:
    folder = made(tmp_path / "b", colour, decoder=grey.decoder())
    sentence = "z is tensor(float) ['n', 2, 3, 2], the manifest says tensor(float) ['n', 4]"
    assert refusal(folder) == f"{folder / DECODER}: {sentence}"


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
    sentence = "mu is tensor(float) [1, 4], the manifest says tensor(float) ['n', 4]"
    assert refusal(folder) == f"{folder / ENCODER}: {sentence}"


def test_a_graph_that_loses_rows_is_refused(tmp_path: Path, colour: Linear) -> None:
    cut = {"starts": np.array([0]), "ends": np.array([3])}
    folder = made(tmp_path / "b", colour, encoder=with_last(colour.encoder(), "mu", "Slice", cut))
    assert refusal(folder) == f"{folder / ENCODER}: on 4 rows mu is (3, 4), expected (4, 4)"


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


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_graph_that_gives_nan_or_infinity_is_refused(tmp_path: Path, colour: Linear, value: float) -> None:
    graph = with_constant(colour.encoder(), "a", np.full_like(colour.a, value))
    folder = made(tmp_path / "b", colour, encoder=graph)
    assert "encoder.onnx: mu differs from the probe by " in refusal(folder)


def test_a_nan_in_the_probe_itself_is_refused(tmp_path: Path, colour: Linear) -> None:
    probe = colour.probe()
    folder = made(tmp_path / "b", colour, probe=replace(probe, mu=np.full_like(probe.mu, np.nan)))
    assert "encoder.onnx: mu differs from the probe by nan" in refusal(folder)


def test_two_bundles_of_one_name_are_refused(tmp_path: Path, bundles: Bundles, grey: Linear) -> None:
    write_linear(tmp_path / "other", grey, name="colour")
    with pytest.raises(BadBundle, match=f"{tmp_path / 'other'}: a model named colour is loaded already"):
        deploy(Settings(bundles=(bundles.colour, tmp_path / "other")))


# Devices, distributions, cores


@pytest.mark.skipif(not NO_CUDA, reason="this onnxruntime has CUDA")
def test_cuda_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(BadEngine, match="device cuda: the installed onnxruntime has no CUDAExecutionProvider, install"):
        resolve_device("cuda")


@pytest.mark.skipif(not NO_CUDA, reason="this onnxruntime has CUDA")
def test_auto_takes_the_cpu_where_there_is_no_cuda() -> None:
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"


@pytest.mark.parametrize(("gpu", "device"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_a_gpu_where_provider_and_device_are_both_there(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, device: str
) -> None:
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(engine_module.ort, "get_available_providers", lambda: providers)
    monkeypatch.setattr(engine_module, "_has_gpu", lambda: gpu)
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
    assert machine._cgroup_quota(tmp_path) == quota  # noqa: SLF001


def test_no_cgroup_sets_no_bound(tmp_path: Path) -> None:
    assert machine._cgroup_quota(tmp_path) is None  # noqa: SLF001


@pytest.mark.parametrize(("quota", "affinity", "cores"), [(None, 6, 6), (2.5, 6, 2), (0.5, 6, 1), (16.0, 6, 6)])
def test_cores_are_the_affinity_bounded_by_the_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, affinity: int, cores: int
) -> None:
    monkeypatch.setattr(machine, "_cgroup_quota", lambda _root: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(affinity)), raising=False)
    assert available_cores() == cores


# The process


def stopped(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """What a process that must not serve says before it ends with 2."""
    ended = subprocess.run(
        [sys.executable, "-m", "service", *arguments, "--port", "0"],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ | (environment or {}),
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr.startswith("vae-serve: ")
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    return ended.stderr.removeprefix("vae-serve: ").rstrip("\n")


def test_a_process_with_a_changed_graph_stops_with_one_sentence(tmp_path: Path, bundles: Bundles) -> None:
    folder = copied(bundles.colour, tmp_path / "colour")
    flip_byte(folder / ENCODER)
    assert stopped(str(folder)).startswith(f"{folder / ENCODER}: sha256 is ")


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
