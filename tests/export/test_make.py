"""A source becomes a bundle that is equal to it, or nothing."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from export.bundle import CannotWrite
from export.frozen import Frozen
from export.make import TOLERANCE, Wanted, make
from export.precision import CannotReduce
from export.verify import NotEqual
from service.bundle import BadBundle, read
from service.engine import Engine
from service.graph import Graph
from service.manifest import ReducedTolerance
from tests.export.linear import frozen, noise
from tests.service.broken import edited, with_constant
from tests.service.linear import linear, open_linear

MODEL = linear((12, 10, 3), (4,))


@pytest.mark.parametrize(
    "model",
    [MODEL, dataclasses.replace(MODEL, family="autoencoder"), linear((9, 7, 1), (2, 3, 2)), open_linear()],
    ids=["vae", "autoencoder", "spatial", "open"],
)
def test_what_was_made_is_what_the_service_loads(model: object, tmp_path: Path) -> None:
    manifest = make(frozen(model), tmp_path / "mine", Wanted(name="mine", licence="MIT"))
    loaded = read(tmp_path / "mine")
    engine = Engine(loaded, device="cpu", threads=1)
    engine.warm(4, 100_000)
    assert engine.scorer is not None
    assert loaded.manifest == manifest
    assert (manifest.name, manifest.licence, manifest.precision, manifest.opset) == ("mine", "MIT", "fp32", 20)
    assert manifest.tolerance == TOLERANCE
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_manifest_states_what_was_measured_and_on_what(tmp_path: Path) -> None:
    make(frozen(MODEL, pictures=noise(20, (12, 10, 3))), tmp_path / "mine", Wanted(name="mine"))
    manifest = json.loads((tmp_path / "mine" / "manifest.json").read_text())
    assert manifest["tolerance"] == {"mu": 1e-4, "logvar": 1e-4, "image": 1, "log_likelihood": 1e-4}
    parity = manifest["parity"]
    for name, allowed in manifest["tolerance"].items():
        assert 0 <= parity[name]["mean"] <= parity[name]["max"] <= allowed
    assert parity["shapes"] == [[rows, 12, 10] for rows in (1, 2, 7, 64)]
    assert (parity["pictures"], parity["real_pictures"]) == (40, 20)
    assert manifest["licence"] is None


def test_the_budget_that_was_asked_for_bounds_the_runs(tmp_path: Path) -> None:
    manifest = make(frozen(MODEL), tmp_path / "mine", Wanted(name="mine", max_run_pixels=7 * 120))
    assert manifest.parity.shapes == ((1, 12, 10), (2, 12, 10), (7, 12, 10))


def test_pictures_of_a_path_are_measured_and_make_the_probe(tmp_path: Path) -> None:
    pictures = noise(40, (12, 10, 3))
    np.savez(tmp_path / "pictures.npz", x_train=pictures[:20], x_test=pictures[20:])
    manifest = make(frozen(MODEL), tmp_path / "mine", Wanted(name="mine", pictures=tmp_path / "pictures.npz"))
    assert (manifest.parity.pictures, manifest.parity.real_pictures) == (40, 20)
    np.testing.assert_array_equal(read(tmp_path / "mine").probe.image, pictures[[20, 26, 33, 39]])


def test_files_of_the_source_travel_along(tmp_path: Path) -> None:
    source = dataclasses.replace(frozen(MODEL), files={"card.md": b"# A card\n", "pictures/a.png": b"png"})
    manifest = make(source, tmp_path / "mine", Wanted(name="mine"))
    assert manifest.files["pictures/a.png"].size_bytes == 3
    assert (tmp_path / "mine" / "card.md").read_bytes() == b"# A card\n"


def test_a_graph_that_differs_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    plain = frozen(MODEL)
    darker = dataclasses.replace(plain.source, decode=lambda z: MODEL.decode(z) // 2)
    with pytest.raises(NotEqual, match="in image; nothing was written"):
        make(dataclasses.replace(plain, source=darker), tmp_path / "mine", Wanted(name="mine"))
    assert list(tmp_path.iterdir()) == []


def broken(encoder: bytes) -> Frozen:
    plain = frozen(MODEL)
    return dataclasses.replace(plain, graphs=dataclasses.replace(plain.graphs, encoder=encoder))


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    nan = np.where(MODEL.a == MODEL.a.max(), np.nan, MODEL.a).astype(np.float32)
    with pytest.raises(BadBundle, match=r"encoder\.onnx: .*NaN"):
        make(broken(with_constant(MODEL.encoder(), "a", nan)), tmp_path / "mine", Wanted(name="mine"))
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_bundles_cannot_hold_is_refused(tmp_path: Path) -> None:
    graph = edited(MODEL.encoder(), lambda proto: proto.output.pop())
    with pytest.raises(BadBundle, match=r"encoder\.onnx: outputs are \['mu'\], the bundle format has"):
        make(broken(graph), tmp_path / "mine", Wanted(name="mine"))
    assert list(tmp_path.iterdir()) == []


def test_a_field_that_no_manifest_can_have_is_refused(tmp_path: Path) -> None:
    plain = frozen(MODEL)
    odd = dataclasses.replace(plain, described=dataclasses.replace(plain.described, latent_scale="much"))
    with pytest.raises(ValidationError, match="latent_scale"):
        make(odd, tmp_path / "mine", Wanted(name="mine"))
    assert list(tmp_path.iterdir()) == []


def test_what_the_service_would_refuse_is_not_written(tmp_path: Path) -> None:
    plain = frozen(MODEL)
    odd = dataclasses.replace(plain, files={"probe.safetensors": b"not the probe"})
    with pytest.raises(BadBundle) as refused:
        make(odd, tmp_path / "mine", Wanted(name="mine"))
    assert str(refused.value).startswith(f"{tmp_path / 'mine' / 'probe.safetensors'}: not readable as safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A data set to calibrate and to measure with."""
    pictures = noise(60, (12, 10, 3))
    np.savez(tmp_path / "photos.npz", x_train=pictures[:40], x_test=pictures[40:])
    return tmp_path / "photos.npz"


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds are measured for as short as can be: no test looks at them."""
    monkeypatch.setattr("export.precision._SECONDS", 0.0)


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_graphs_in_fewer_bits_state_what_they_lose_and_gain(precision: str, photos: Path, tmp_path: Path) -> None:
    calibrate = photos if precision == "int8" else None
    wanted = Wanted(name="mine", precision=precision, pictures=photos, calibrate=calibrate)  # type: ignore[arg-type]
    manifest = make(frozen(MODEL), tmp_path / "mine", wanted)
    assert manifest.precision == precision
    assert isinstance(manifest.tolerance, ReducedTolerance)
    assert manifest.parity.psnr_db is not None
    assert manifest.parity.psnr_db >= 35
    assert manifest.parity.mu_in_sigma is not None
    assert manifest.parity.mu_in_sigma.mean <= 0.1
    assert manifest.parity.logvar is not None
    engine = Engine(read(tmp_path / "mine"), device="cpu", threads=1)
    of_test_part = (graph(np.load(photos)["x_test"])[1] for graph in (engine.encoder.run, MODEL.encode))
    assert manifest.parity.logvar.mean == pytest.approx(np.abs(np.subtract(*of_test_part)).mean(), rel=1e-3)
    assert manifest.parity.logvar.mean <= 0.2
    assert manifest.tolerance.logvar is not None
    assert manifest.tolerance.logvar >= max(0.2, 2 * manifest.parity.logvar.max - 1e-3)
    assert manifest.parity.shapes == tuple((rows, 12, 10) for rows in (1, 2, 7, 64))
    assert manifest.variant is not None
    assert manifest.variant.size_ratio < 1
    loaded = read(tmp_path / "mine")
    assert loaded.encoder != MODEL.encoder()
    np.testing.assert_array_equal(loaded.probe.mu, MODEL.encode(loaded.probe.image)[0])  # the source's, in fp32
    Engine(loaded, device="cpu", threads=1).warm(4, 100_000)


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("own", [True, False])
def test_without_other_pictures_int8_is_measured_on_those_of_the_calibration_that_it_has_not_learnt_from(
    own: bool, photos: Path, tmp_path: Path
) -> None:
    wanted = Wanted(name="mine", precision="int8", calibrate=photos)
    brought = noise(4, (12, 10, 3), seed=4) if own else None
    manifest = make(frozen(MODEL, pictures=brought), tmp_path / "mine", wanted)
    test_part = np.load(photos)["x_test"]
    expected = brought if brought is not None else test_part
    assert manifest.parity.real_pictures == len(expected)
    chosen = read(tmp_path / "mine").probe.image
    shown = [bool((picture == expected).all(axis=(1, 2, 3)).any()) for picture in chosen]
    assert shown == [own] * len(chosen), "those to calibrate with are nobody else's"


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_budget_that_was_asked_for_bounds_every_run_of_a_variant(
    precision: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    run = Graph.run

    def counted(graph: Graph, *inputs: np.ndarray, **others: object) -> object:
        rows.append(len(inputs[0]))
        return run(graph, *inputs, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(Graph, "run", counted)
    calibrate = photos if precision == "int8" else None
    wanted = Wanted(name="mine", precision=precision, calibrate=calibrate, max_run_pixels=5 * 120)  # type: ignore[arg-type]
    manifest = make(frozen(MODEL), tmp_path / "mine", wanted)
    assert max(rows) == 5
    assert manifest.variant is not None
    assert manifest.variant.batch_rows == 5


@pytest.mark.usefixtures("_quick")
def test_a_variant_that_loses_too_much_is_written_only_if_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.precision.LEAST_PSNR_DB", 98.0)
    with pytest.raises(CannotReduce, match=r"fp16: pictures are \d\d\.\d dB from the source's, expected 98 dB or more"):
        make(frozen(MODEL), tmp_path / "mine", Wanted(name="mine", precision="fp16"))
    assert list(tmp_path.iterdir()) == []
    forced = make(frozen(MODEL), tmp_path / "mine", Wanted(name="mine", precision="fp16", force=True))
    assert forced.parity.psnr_db is not None
    assert forced.parity.psnr_db < 98
    assert read(tmp_path / "mine").manifest == forced


def test_int8_asks_for_pictures_and_nothing_else_takes_them() -> None:
    expected = "expected pictures like those to be served, for int8 alone"
    with pytest.raises(CannotReduce, match=f"--calibrate: got nothing with int8, {expected}"):
        Wanted(name="mine", precision="int8")
    with pytest.raises(CannotReduce, match=f"--calibrate: got photos with fp16, {expected}"):
        Wanted(name="mine", precision="fp16", calibrate=Path("photos"))


def test_in_fp32_there_is_nothing_to_force() -> None:
    with pytest.raises(CannotReduce, match="--force: got it with fp32, expected it below fp32 alone"):
        Wanted(name="mine", force=True)


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(CannotWrite, match="mine: exists already"):
        make(frozen(MODEL), tmp_path / "mine", Wanted(name="mine"))
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize("licence", ["", " "])
def test_a_licence_that_says_nothing_is_refused(licence: str) -> None:
    with pytest.raises(CannotWrite, match=f"--licence: got '{licence}', expected the licence of weights and data"):
        Wanted(name="mine", licence=licence)


def test_a_name_is_judged_before_anything_is_done() -> None:
    with pytest.raises(CannotWrite, match="name: got 'a b', expected"):
        Wanted(name="a b")
