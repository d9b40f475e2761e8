"""bf16: what refuses it, what `auto` takes, and, where OpenVINO is installed, what it answers."""

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import bf16, differences, proof
from service import engine as engine_module
from service import graph as graph_module
from service.bundle import BadBundle, read
from service.engine import Engine, Precision, start
from service.graph import Graph
from service.machine import BadEngine, cpu_flags
from service.manifest import ENCODER
from tests.service.broken import made, with_last
from tests.service.linear import Bundles, Linear, linear, write_linear
from tests.service.wire import latents, pixels, png
from tests.serving import serving, stopped

OFFERED = [bf16.PROVIDER, "CPUExecutionProvider"]
FLAGS = {"fpu", "avx2", "avx512_bf16"}
MISSING = (
    f"this onnxruntime has no {bf16.PROVIDER}"
    if bf16.PROVIDER not in ort.get_available_providers()
    else "this processor does not multiply bf16"
    if not {"amx_bf16", "avx512_bf16"} & cpu_flags()
    else ""
)
needs_bf16 = pytest.mark.skipif(bool(MISSING), reason=MISSING)
needs_none = pytest.mark.skipif(not MISSING, reason="bf16 can be had here")

NO_PROVIDER = f"the installed onnxruntime has no {bf16.PROVIDER}, install vaeserve[openvino]"
NO_FLAG = "the processor has none of amx_bf16, avx512_bf16, by which bf16 is quicker than fp32"


@pytest.fixture(scope="module")
def sharp() -> Linear:
    """A posterior so narrow that bf16 moves mu by more than a quarter of its sigma."""
    colour = linear((6, 5, 3), (4,), seed=0)
    return replace(colour, b=np.full_like(colour.b, -0.3))


def refusal(folder: Path, *, precision: Precision = "bf16") -> str:
    with pytest.raises(BadEngine) as refused:
        start(read(folder), device="cpu", threads=1, precision=precision)
    return str(refused.value)


def offered(monkeypatch: pytest.MonkeyPatch, providers: list[str], flags: set[str]) -> None:
    """Pretend that onnxruntime has these providers, and the processor these flags."""
    monkeypatch.setattr(graph_module.ort, "get_available_providers", lambda: providers)
    monkeypatch.setattr(engine_module, "cpu_flags", lambda: flags)


# What must be there


@pytest.mark.parametrize("flags", [{"amx_bf16"}, {"avx512_bf16"}, {"fpu", "amx_bf16", "avx512_bf16"}])
def test_nothing_is_said_where_all_is_there(flags: set[str]) -> None:
    bf16.require(device="cpu", graphs="fp32", providers=OFFERED, cpu_flags=flags)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"providers": ["CPUExecutionProvider"]}, NO_PROVIDER),
        ({"device": "cuda"}, "device is cuda, expected cpu"),
        ({"cpu_flags": set()}, NO_FLAG),
        ({"cpu_flags": {"avx512f", "amx_tile", "bf16"}}, NO_FLAG),
        ({"graphs": "int8"}, "the bundle's graphs are in int8, expected fp32"),
    ],
)
def test_what_is_missing_is_said(wrong: dict[str, Any], said: str) -> None:
    sound: dict[str, Any] = {"device": "cpu", "graphs": "fp32", "providers": OFFERED, "cpu_flags": FLAGS}
    with pytest.raises(BadEngine) as refused:
        bf16.require(**(sound | wrong))
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("cpuinfo", "flags"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_bf16\nbugs\t\t: none\n", {"fpu", "avx512_bf16", "amx_bf16"}),
        ("processor\t: 0\nflags\t\t: fpu\n\nprocessor\t: 1\nflags\t\t: fpu\n", {"fpu"}),
        ("processor\t: 0\nvmx flags\t: avx512_bf16\nflags\t\t: fpu\n", {"fpu"}),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", set()),
        ("", set()),
    ],
)
def test_a_processors_flags_are_read(tmp_path: Path, cpuinfo: str, flags: set[str]) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert cpu_flags(tmp_path / "cpuinfo") == flags


def test_a_machine_without_such_a_file_has_no_flags(tmp_path: Path) -> None:
    assert cpu_flags(tmp_path / "cpuinfo") == frozenset()


# What a probe may lose


SIGMA = np.array([[1.0, 0.1], [0.02, 2.0]], np.float32)
MU = np.array([[0.5, -3.0], [2.0, 0.0]], np.float32)


def fault(name: str, found: np.ndarray, expected: np.ndarray) -> str | None:
    return proof._fault(  # noqa: SLF001
        name, found, expected, logvar=2 * np.log(SIGMA), scale_head="logvar", tolerance=bf16.TOLERANCE
    )


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_mu_may_be_off_by_a_quarter_of_the_posteriors_sigma(place: tuple[int, int]) -> None:
    near, far = MU.copy(), MU.copy()
    near[place] += 0.24 * SIGMA[place]
    far[place] += 0.26 * SIGMA[place]
    assert fault("mu", near, MU) is None
    assert fault("mu", far, MU) == "differs from the probe by 0.26 sigma, the tolerance is 0.25 sigma"


def test_logvar_may_be_off_by_a_half() -> None:
    expected = 2 * np.log(SIGMA)
    assert fault("logvar", expected + np.float32(0.49), expected) is None
    assert (
        fault("logvar", expected - np.float32(0.51), expected) == "differs from the probe by 0.51, the tolerance is 0.5"
    )


def test_pictures_may_be_off_by_forty_decibels() -> None:
    """Two grey levels everywhere are 20 log10(255 / 2) = 42.1 dB, three are 38.6."""
    expected = np.full((2, 4, 4, 1), 100, np.uint8)
    assert fault("image", expected + np.uint8(2), expected) is None
    assert fault("image", expected + np.uint8(3), expected) == ("is 38.6 dB from the probe's, the tolerance is 40 dB")


# What is chosen


def test_bf16_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch, bundles: Bundles) -> None:
    offered(monkeypatch, ["CPUExecutionProvider"], FLAGS)
    assert refusal(bundles.colour) == f"precision bf16: {NO_PROVIDER}"
    offered(monkeypatch, OFFERED, {"fpu"})
    assert refusal(bundles.colour) == f"precision bf16: {NO_FLAG}"


def test_auto_takes_fp32_where_bf16_cannot_be_had_and_says_why(
    monkeypatch: pytest.MonkeyPatch, bundles: Bundles
) -> None:
    offered(monkeypatch, OFFERED, {"fpu"})
    engine = start(read(bundles.colour), device="cpu", threads=1, precision="auto")
    assert (engine.precision, engine.provider) == ("fp32", "CPUExecutionProvider")
    assert engine.remark == f"not bf16: {NO_FLAG}"


def test_fp32_is_what_it_was_and_says_nothing(bundles: Bundles) -> None:
    engine = start(read(bundles.colour), device="cpu", threads=1, precision="fp32")
    assert (engine.precision, engine.provider, engine.remark) == ("fp32", "CPUExecutionProvider", "")


REDUCED = {"precision": "int8", "tolerance": {"mu_in_sigma": 0.1, "psnr_db": 35}}


def test_a_bundle_below_fp32_keeps_its_precision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, colour: Linear
) -> None:
    offered(monkeypatch, OFFERED, FLAGS)
    folder = made(tmp_path / "b", colour, **REDUCED)
    assert refusal(folder) == "precision bf16: the bundle's graphs are in int8, expected fp32"
    engine = start(read(folder), device="cpu", threads=1, precision="auto")
    assert engine.precision == "int8"
    assert engine.remark == "not bf16: the bundle's graphs are in int8, expected fp32"


@needs_none
def test_a_provider_that_does_not_start_is_refused(monkeypatch: pytest.MonkeyPatch, bundles: Bundles) -> None:
    offered(monkeypatch, OFFERED, FLAGS)
    said = refusal(bundles.colour)
    assert said.startswith(f"precision bf16: {bundles.colour / ENCODER}: OpenVINO refuses it (")
    engine = start(read(bundles.colour), device="cpu", threads=1, precision="auto")
    assert (engine.precision, engine.provider) == ("fp32", "CPUExecutionProvider")
    assert engine.remark == said.replace("precision bf16: ", "not bf16: ")


def test_auto_excuses_no_wrong_bundle(tmp_path: Path, colour: Linear) -> None:
    probe = colour.probe()
    folder = made(tmp_path / "b", colour, probe=replace(probe, mu=probe.mu + 1))
    with pytest.raises(BadBundle) as refused:
        start(read(folder), device="cpu", threads=1, precision="auto")
    assert str(refused.value) == f"{folder / ENCODER}: mu differs from the probe by 1, the tolerance is 0.0001"


# The process


@needs_none
def test_a_process_that_cannot_have_bf16_stops_with_one_sentence(bundles: Bundles) -> None:
    assert stopped(str(bundles.colour), "--precision", "bf16").startswith("precision bf16: the ")


@needs_none
def test_a_process_says_at_start_why_auto_is_not_bf16(bundles: Bundles) -> None:
    with serving([str(bundles.colour), "--precision", "auto"]) as server:
        assert re.search(r", fp32 \(not bf16: the [^)]+\), \d+ threads?$", server.said[0].rstrip())


# With OpenVINO


@pytest.fixture(scope="module")
def model() -> Linear:
    return linear((28, 28, 1), (16,), seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: Linear) -> Path:
    folder = tmp_path_factory.mktemp("scored") / "b"
    write_linear(folder, model, scorer=model.scorer(shared=True))
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return start(read(folder), device="cpu", threads=0, cores=2, precision="bf16")


@needs_bf16
def test_answers_are_those_of_bf16(engine: Engine, model: Linear) -> None:
    """Off by more than fp32 ever is, and by less than is allowed."""
    assert (engine.precision, engine.provider) == ("bf16", bf16.PROVIDER)
    image = pixels(8, model.shape)
    for found, expected in zip(engine.encoder.run(image), model.encode(image), strict=True):
        apart = differences.absolute(found, expected).max() / expected.std()
        assert 1e-4 < apart < 0.05
    z = latents(8, model.latent_shape)
    assert differences.psnr_db(engine.decoder.run(z)[0], model.decode(z)) > bf16.TOLERANCE.psnr_db


@needs_bf16
def test_the_scorer_stays_in_fp32(engine: Engine, model: Linear) -> None:
    assert engine.scorer
    assert engine.scorer.provider == "CPUExecutionProvider"
    image, z = pixels(5, model.shape), latents(5, model.latent_shape)
    np.testing.assert_allclose(engine.scorer.run(image, z)[0], model.log_likelihood(image, z), rtol=1e-5)


@needs_bf16
def test_the_remark_says_how_far_the_probe_is(engine: Engine, folder: Path) -> None:
    told = re.fullmatch(r"mu (\S+) sigma from the probe's, pictures (\S+) dB", engine.remark)
    assert told
    probe = read(folder).probe
    assert probe.logvar is not None
    apart = np.abs(engine.encoder.run(probe.image)[0] - probe.mu) / np.exp(probe.logvar / 2)
    assert float(told[1]) == pytest.approx(apart.max(), rel=0.05)
    off = engine.decoder.run(probe.z)[0].astype(float) - probe.decoded
    assert float(told[2]) == pytest.approx(20 * np.log10(255 / np.sqrt((off**2).mean())), rel=0.01)


@needs_bf16
@settings(max_examples=20)
@given(n=st.integers(1, 40), start_at=st.integers(0, 39), count=st.integers(1, 40))
def test_a_row_does_not_hang_on_its_neighbours(engine: Engine, n: int, start_at: int, count: int) -> None:
    part = slice(start_at % n, start_at % n + count)
    image = pixels(n, (28, 28, 1))
    for whole, alone in zip(engine.encoder.run(image), engine.encoder.run(image[part]), strict=True):
        np.testing.assert_array_equal(whole[part], alone)


@needs_bf16
def test_runs_side_by_side_give_what_they_give_alone(engine: Engine) -> None:
    images = [pixels(n, (28, 28, 1), seed=n) for n in range(1, 9)]
    alone = [engine.encoder.run(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(engine.encoder.run, images * 5))
    for found, expected in zip(together, alone * 5, strict=True):
        np.testing.assert_array_equal(found, expected)


@needs_bf16
@pytest.mark.parametrize(("rows", "expected"), [(32, range(1, 33)), (6, range(1, 7)), (70, [*range(1, 33), 64])])
def test_every_size_of_a_common_batch_has_its_first_run_at_start(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, rows: int, expected: Iterable[int]
) -> None:
    ran: dict[Path, set[int]] = {}
    tried = Graph.tried

    def noted(graph: Graph, *inputs: Any) -> Any:
        ran.setdefault(graph.path, set()).add(len(inputs[0]))
        return tried(graph, *inputs)

    monkeypatch.setattr(Graph, "tried", noted)
    engine.warm(rows, 10**6)
    assert ran[engine.encoder.path] == ran[engine.decoder.path] == set(expected)


@needs_bf16
@pytest.mark.parametrize(
    "asked",
    [
        {"device_type": "CPU", "load_config": '{"CPU": {"INFERENCE_PRECISION_HINT": "bf17"}}'},
        {"device_type": "CPU", "load_config": '{"XPU": {"INFERENCE_PRECISION_HINT": "bf16"}}'},
        {"device_type": "CPU"},
    ],
    ids=["a precision it does not know", "a device it does not know", "nothing"],
)
def test_options_that_openvino_passes_over_are_noticed(
    monkeypatch: pytest.MonkeyPatch, folder: Path, asked: dict[str, str]
) -> None:
    """Such a graph runs in OpenVINO, in fp32, and nothing says so."""
    monkeypatch.setattr(bf16, "options", lambda *_args, **_named: asked)
    said = f"{folder / ENCODER}: OpenVINO answers the probe in bf16 as in fp32, to the bit"
    assert refusal(folder) == f"precision bf16: {said}"
    engine = start(read(folder), device="cpu", threads=1, precision="auto")
    assert (engine.precision, engine.remark) == ("fp32", f"not bf16: {said}")


@needs_bf16
@pytest.mark.parametrize(
    "asked",
    [
        {"device_type": "XPU"},
        {"device_type": "CPU", "precision": "BF16"},
        {"device_type": "CPU", "load_config": '{"CPU": {"NO_SUCH_OPTION": "1"}}'},
        {"device_type": "CPU", "load_config": "/no/json"},
        {"device_type": "CPU", "no_such_option": "1"},
    ],
    ids=["device", "precision", "option of the device", "no JSON", "option of the provider"],
)
def test_options_that_make_onnxruntime_run_a_graph_elsewhere_are_refused(
    monkeypatch: pytest.MonkeyPatch, folder: Path, asked: dict[str, str]
) -> None:
    monkeypatch.setattr(bf16, "options", lambda *_args, **_named: asked)
    assert refusal(folder).startswith(f"precision bf16: {folder / ENCODER}: OpenVINO refuses it (")


@pytest.fixture
def hard(tmp_path: Path, colour: Linear) -> Path:
    """A bundle whose encoder ends in an operator that onnxruntime has and OpenVINO has not."""
    probe = colour.probe()
    highest = np.eye(4, dtype=np.float32)[probe.mu.argmax(axis=1)]
    graph = with_last(colour.encoder(), "mu", "Hardmax", {})
    return made(tmp_path / "hard", colour, encoder=graph, probe=replace(probe, mu=highest))


@needs_bf16
def test_a_graph_that_openvino_does_not_take_is_refused(hard: Path) -> None:
    said = refusal(hard)
    assert said.startswith(f"precision bf16: {hard / ENCODER}: OpenVINO refuses it (")
    engine = start(read(hard), device="cpu", threads=1, precision="auto")
    assert (engine.precision, engine.provider) == ("fp32", "CPUExecutionProvider")
    assert engine.remark == said.replace("precision bf16: ", "not bf16: ")


@needs_bf16
def test_a_probe_out_of_bounds_is_refused_with_figures(tmp_path: Path, sharp: Linear) -> None:
    folder = made(tmp_path / "b", sharp)
    said = refusal(folder)
    told = re.fullmatch(
        rf"precision bf16: {folder / ENCODER}: mu differs from the probe by (\S+) sigma, the tolerance is 0.25 sigma",
        said,
    )
    assert told
    assert 0.25 < float(told[1]) < 10
    engine = start(read(folder), device="cpu", threads=1, precision="auto")
    assert engine.precision == "fp32"
    assert engine.remark == said.replace("precision bf16: ", "not bf16: ")


@needs_bf16
def test_a_process_serves_bf16_and_says_so(folder: Path, hard: Path, model: Linear) -> None:
    image = pixels(1, model.shape)
    tags = {}
    for precision in ("fp32", "auto"):
        with (
            serving([str(folder), str(hard), "--precision", precision]) as server,
            httpx.Client(base_url=server.url, timeout=30) as http,
        ):
            loaded = http.get("/models").json()["models"]
            tags[precision] = http.get("/sample", params={"seed": 3}).headers["etag"]
            mu = http.post("/encode", content=png(image[0]), headers={"Content-Type": "image/png"}).json()["mu"]
    assert [(one["provider"], one["precision"]) for one in loaded] == [
        (bf16.PROVIDER, "bf16"), ("CPUExecutionProvider", "fp32")
    ]  # fmt: skip
    first, second, *_ = server.said
    assert re.search(r", bf16 \(mu \S+ sigma from the probe's, pictures \S+ dB\), \d+ threads?$", first.rstrip())
    assert re.search(r", fp32 \(not bf16: .+ OpenVINO refuses it .+\), \d+ threads?$", second.rstrip())
    assert tags["fp32"] != tags["auto"]
    assert 1e-4 < np.abs(np.array(mu) - model.encode(image)[0]).max() < 0.02


@needs_bf16
def test_a_process_that_cannot_run_a_graph_in_bf16_stops_with_one_sentence(hard: Path) -> None:
    assert stopped(str(hard), "--precision", "bf16").startswith(f"precision bf16: {hard / ENCODER}: Open")
