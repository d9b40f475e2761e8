"""The graphs of one bundle: what a sound engine gives, on how many threads, at which cost."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import engine as engine_module
from service.bundle import read
from service.engine import Cost, Engine, rows_of_a_run
from service.manifest import DECODER, ENCODER, MANIFEST
from tests.service.broken import made, with_last
from tests.service.linear import Bundles, Linear, linear, open_linear, write_linear
from tests.service.refusals import FIRST_FOUR_ROWS, refusal, started
from tests.service.wire import assert_near, latents, pixels


@pytest.fixture(scope="module")
def open_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("open") / "open"
    model = open_linear()
    write_linear(folder, model, scorer=model.scorer())
    return Engine(read(folder), device="cpu", threads=1)


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


def test_a_manifest_of_another_opset_than_its_graphs_is_refused(tmp_path: Path, colour: Linear) -> None:
    folder = made(tmp_path / "b", colour, opset=19)
    assert refusal(folder) == f"{folder / MANIFEST}: opset is 19, its graphs have 20"


def test_what_others_use_meanwhile_is_no_cost_of_a_graph(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a bundle is loaded while another one serves."""
    seconds = iter(range(10_000))
    monkeypatch.setattr(engine_module, "process_time", lambda: float(next(seconds)))
    made = Engine(read(bundles.colour), device="cpu", threads=0, cores=4)
    assert (made.encoder.threads, made.decoder.threads) == (1, 1)


def test_where_each_core_has_rows_of_its_own_a_run_takes_some_milliseconds(
    tmp_path: Path, colour: Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a graph that is held twice; one of small rows takes as many as it is let."""
    monkeypatch.setattr("service.engine._SMALL_ROW_US", 0.0)
    engine = Engine(read(made(tmp_path / "b", colour)), device="cpu", threads=0, cores=2)
    engine.warm(8, 10**6)
    assert engine.singles
    for row_us, rows in ((4_000.0, 7), (35_000.0, 1), (0.0, sys.maxsize)):
        engine.costs[ENCODER] = Cost(0.0, row_us, row_us)
        assert engine.most_rows(ENCODER) == rows
    del engine.singles[ENCODER]
    engine.costs[ENCODER] = Cost(0.0, 4_000.0, 4_000.0)
    assert engine.most_rows(ENCODER) == sys.maxsize
