"""vae-export as a person calls it: what is printed, the exit code, and that nothing is written where it fails."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from PIL import Image
from safetensors.numpy import save_file
from typer.testing import CliRunner, Result

import export.make
from export.__main__ import app
from model import checkpoint, fingerprints
from service.bundle import Bundle, read
from service.errors import OutOfMemory
from service.machine import BadEngine
from tests.export import onnx_files
from tests.service.broken import edit_manifest, flip_byte
from tests.service.linear import linear, write_linear

MODEL = linear((6, 5, 3), (4,))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refusal(*arguments: object) -> str:
    """The sentence of a call that fails."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("vae-export: ")
    return result.stderr.removeprefix("vae-export: ").rstrip("\n")


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    """Options that name two ONNX files which speak bytes and logvar already."""
    (tmp_path / "graphs").mkdir()
    for name in ("encoder", "decoder"):
        (tmp_path / "graphs" / f"{name}.onnx").write_bytes(getattr(MODEL, name)())
    return [f"--{name}={tmp_path / 'graphs' / f'{name}.onnx'}" for name in ("encoder", "decoder")]


# make


def test_make_says_what_it_made_and_how_near_it_is(untrained: Path, tmp_path: Path) -> None:
    result = call("make", untrained, tmp_path / "mine", "--licence", "MIT", "--max-run-pixels", 500)
    assert result.exit_code == 0, result.output
    manifest = read(tmp_path / "mine").manifest
    made, size, head, differences = result.stdout.splitlines()
    assert made == f"{tmp_path / 'mine'}: {manifest.label}"
    assert size.endswith(f" kB in {len(manifest.files)} files")
    assert head.endswith(" pictures, 1, 2, 7 rows of 8×8:")
    assert differences.startswith(f"  mu {manifest.parity.mu.max:.2g}, pictures ")


def test_make_says_what_fewer_bits_lose_and_gain(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.precision._SECONDS", 0.0)
    result = call("onnx", *pair, "--precision", "fp16", tmp_path / "mine")
    assert result.exit_code == 0, result.output
    *_, loss, gain = result.stdout.splitlines()
    assert re.fullmatch(r"pictures \d\d\.\d dB from the source's, mu \S+ sigma on average;", loss)
    told = r"  encoder \S+, decoder \S+ times as fast, \d+% of the size in fp32, at 16 rows here"
    assert re.fullmatch(told, gain)


def test_a_variant_that_no_device_runs_is_written_without_its_speed(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OutOfMemory("encoder.onnx: the device has no memory for 16 rows now")

    monkeypatch.setattr("export.precision.speedup", failing)
    result = call("onnx", *pair, "--precision", "fp16", tmp_path / "mine")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "  how fast that is could not be measured here"
    assert read(tmp_path / "mine").manifest.variant is None
    assert "times as fast" not in call("inspect", tmp_path / "mine").stdout


def test_a_precision_that_is_none_is_refused(pair: list[str], tmp_path: Path) -> None:
    result = call("onnx", *pair, "--precision", "int4", tmp_path / "mine")
    assert result.exit_code == 2
    assert "'int4'" in result.stderr


def test_int8_without_pictures_is_refused(pair: list[str], tmp_path: Path) -> None:
    sentence = refusal("onnx", *pair, "--precision", "int8", tmp_path / "mine")
    assert sentence.startswith("--calibrate: got nothing with int8, expected pictures")


def test_make_names_the_model_after_its_folder_or_as_it_is_told(pair: list[str], tmp_path: Path) -> None:
    assert call("onnx", *pair, tmp_path / "mine").exit_code == 0
    assert call("onnx", *pair, "--name", "other", tmp_path / "yours").exit_code == 0
    assert [read(tmp_path / name).manifest.name for name in ("mine", "yours")] == ["mine", "other"]


def test_make_measures_with_the_pictures_that_it_is_given(pair: list[str], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for grey in range(20):
        Image.new("L", (9, 9), grey).save(tmp_path / "photos" / f"{grey}.png")
    assert call("onnx", *pair, "--pictures", tmp_path / "photos", tmp_path / "mine").exit_code == 0
    bundle = read(tmp_path / "mine")
    assert bundle.manifest.parity.real_pictures == 2  # the test part
    assert all(np.ptp(picture) == 0 for picture in bundle.probe.image)


def test_pictures_that_are_not_there_are_named(pair: list[str], tmp_path: Path) -> None:
    sentence = refusal("onnx", *pair, "--pictures", tmp_path / "nowhere", tmp_path / "mine")
    assert sentence.startswith(f"{tmp_path / 'nowhere'}: got nothing there, expected ")
    assert not (tmp_path / "mine").exists()


def test_above_the_tolerance_a_table_is_printed_and_nothing_written(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = export.make.TOLERANCE.model_copy(update={"mu": -1.0})
    monkeypatch.setattr(export.make, "TOLERANCE", strict)
    sentence, head, *rows = refusal("onnx", *pair, tmp_path / "mine").splitlines()
    assert sentence == "the graphs differ from their source in mu; nothing was written"
    assert head.split() == ["largest", "mean", "allowed"]
    assert [row.split()[0] for row in rows] == ["mu", "logvar", "image"]
    assert rows[0].split()[3:] == ["-1", "over"]
    assert not (tmp_path / "mine").exists()


def test_into_a_folder_go_several_sources_by_their_names(untrained: Path, tmp_path: Path) -> None:
    shutil.copytree(untrained, tmp_path / "runs" / "second")
    result = call("make", untrained, tmp_path / "runs" / "second", "--into", tmp_path / "bundles")
    assert result.exit_code == 0, result.output
    bundles = sorted((tmp_path / "bundles").iterdir())
    assert [path.name for path in bundles] == ["second", "untrained"]
    assert [read(path).manifest.name for path in bundles] == ["second", "untrained"]


def test_of_several_sources_the_one_that_fails_is_named(untrained: Path, tmp_path: Path) -> None:
    bad = with_figures(untrained, tmp_path / "bad", active_units="many")
    result = call("make", untrained, bad, "--into", tmp_path / "bundles")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"vae-export: {bad}: diagnostics.active_units: got 'many', ")
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == ["untrained"]
    (tmp_path / "empty").mkdir()
    sentence = refusal("make", tmp_path / "empty", "--into", tmp_path / "bundles")
    assert sentence.startswith(f"{tmp_path / 'empty'}: of no known kind, expected")  # once


@pytest.mark.parametrize("count", [1, 3])
def test_without_into_make_takes_a_source_and_a_bundle(count: int, tmp_path: Path) -> None:
    places = [tmp_path / str(number) for number in range(count)]
    assert refusal("make", *places) == f"got {count} paths, expected SOURCE and BUNDLE, or sources and --into FOLDER"


def test_into_refuses_a_name_for_all_and_sources_of_one_name_before_it_begins(untrained: Path, tmp_path: Path) -> None:
    into = tmp_path / "bundles"
    assert refusal("make", untrained, "--into", into, "--name", "x") == (
        "--name: got 'x' with --into, expected none: each bundle has the name of its source"
    )
    other = tmp_path / "other" / "untrained"
    assert refusal("make", untrained, other, "--into", into) == (
        f"{untrained}: got its name twice, expected sources of different names with --into"
    )
    assert refusal("make", untrained, tmp_path / "a b", "--into", into).startswith("name: got 'a b', expected at most")
    (into / "untrained").mkdir(parents=True)
    assert refusal("make", untrained, "--into", into) == f"{into / 'untrained'}: exists already, expected a new place"


def test_a_folder_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    sentence = refusal("make", tmp_path, tmp_path / "mine")
    assert sentence.startswith(f"{tmp_path}: of no known kind, expected config.json with format, model and training")
    assert list(tmp_path.iterdir()) == []


def test_a_broken_run_is_refused(untrained: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_bytes((untrained / "config.json").read_bytes())
    sentence = refusal("make", tmp_path / "run", tmp_path / "mine")
    assert sentence.startswith(f"{tmp_path / 'run' / 'model.safetensors'}: got No such file")


def with_figures(untrained: Path, run: Path, **changes: object) -> Path:
    """The untrained run with figures as of its evaluation, but for the changes."""
    shutil.copytree(untrained, run)
    metrics = {
        "protocol": {"model_sha256": fingerprints.of_model(checkpoint.read(run).vae)},
        "kl_per_dimension": [1.0],
        "mu": {"min": [0.0], "max": [1.0], "variance": [1.0]},
    }
    (run / "metrics.json").write_text(json.dumps(metrics | changes))
    return run


def test_a_figure_that_no_manifest_can_hold_is_named(untrained: Path, tmp_path: Path) -> None:
    run = with_figures(untrained, tmp_path / "run", active_units="many")
    sentence = refusal("make", run, tmp_path / "mine")
    assert sentence.startswith("diagnostics.active_units: got 'many', Input should be a valid integer")
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("command", ["make", "onnx", "torch"])
def test_a_taken_place_and_a_bad_name_are_refused_before_the_source_is_read(command: str, tmp_path: Path) -> None:
    source = {
        "make": ["make", "nowhere"],
        "onnx": ["onnx", "--encoder=nowhere", "--decoder=nowhere"],
        "torch": ["torch", "nowhere:build"],
    }[command]
    (tmp_path / "taken").write_text("mine")
    assert refusal(*source, tmp_path / "taken") == f"{tmp_path / 'taken'}: exists already, expected a new place"
    assert refusal(*source, tmp_path / "a b").startswith("name: got 'a b', expected at most 64 letters")
    for name in ("/", ""):
        assert refusal(*source, tmp_path / "mine", "--name", name).startswith(f"name: got '{name}', expected")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("option", ["--pictures", "--calibrate"])
def test_pictures_that_are_not_there_are_refused_before_the_source_is_read(option: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    others = {"--pictures": tmp_path / "photos", "--calibrate": tmp_path / "photos"} | {option: tmp_path / "fotos"}
    given = [text for name, path in others.items() for text in (name, str(path))]
    sentence = refusal("make", "nowhere", tmp_path / "mine", "--precision", "int8", *given)
    assert sentence == f"{tmp_path / 'fotos'}: got nothing there, expected a data set of pictures for {option}"
    hub = ["--pictures", "hf:owner/name"]
    assert refusal("make", "nowhere", tmp_path / "mine", *hub).startswith("nowhere: got nothing there, expected a f")


def test_a_place_inside_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    expected = f"{tmp_path / 'file'}: got a file, expected a folder to write into"
    assert refusal("make", "nowhere", tmp_path / "file" / "deep" / "mine") == expected


def test_what_the_system_refuses_is_told_with_the_place(pair: list[str], tmp_path: Path) -> None:
    place = tmp_path / ("long" * 100)
    assert refusal("onnx", *pair, "--name", "mine", place) == f"{place}: File name too long"


# every option


@pytest.fixture
def every_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Each option that `make`, `onnx` and `torch` share, for a variant that would be refused without the last."""
    monkeypatch.setattr("export.precision._SECONDS", 0.0)
    monkeypatch.setattr("export.precision.LEAST_PSNR_DB", 100.0)
    for name, count in (("photos", 20), ("others", 40)):
        pictures = np.random.default_rng(count).integers(0, 256, (count, 9, 9, 3), dtype=np.uint8)
        (tmp_path / name).mkdir()
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(tmp_path / name / f"{number}.png")
    measured = ["--pictures", tmp_path / "photos", "--max-run-pixels", 500]
    reduced = ["--precision", "int8", "--calibrate", tmp_path / "others", "--force"]
    return ["--name", "named", "--licence", "MIT", *measured, *reduced]


def obeyed(folder: Path, *, most_rows: int) -> Bundle:
    """A bundle that was made with every option, so that no run has more than 500 pixels or `most_rows`."""
    bundle = read(folder)
    manifest = bundle.manifest
    assert (manifest.name, manifest.licence, manifest.precision) == ("named", "MIT", "int8")
    assert manifest.parity.real_pictures == 2 * len({shape[1:] for shape in manifest.parity.shapes})  # the test part
    assert max(rows for rows, *_ in manifest.parity.shapes) == most_rows
    assert manifest.variant is not None
    assert manifest.variant.batch_rows == max(1, min(16, 500 // math.prod(manifest.image.default_shape[:2])))
    return bundle


@pytest.mark.parametrize("kind", ["ours", "pythae"])
def test_make_obeys_every_option(kind: str, untrained: Path, tmp_path: Path, every_option: list[object]) -> None:
    source = untrained if kind == "ours" else Path(__file__).parent / "pythae" / "saved"
    result = call("make", source, tmp_path / "mine", *every_option)
    assert result.exit_code == 0, result.output
    bundle = obeyed(tmp_path / "mine", most_rows=7 if kind == "ours" else 64)
    assert bundle.manifest.source.kind == ("vaeserve" if kind == "ours" else "pythae")
    refused = refusal("make", source, tmp_path / "again", *every_option[:-1])
    assert refused.endswith("nothing was written, --force writes it")


def test_onnx_obeys_every_option(tmp_path: Path, every_option: list[object]) -> None:
    encoder = onnx_files.open_encoder(layout="nhwc", stride=5)
    encoder.graph.node.append(helper.make_node("Exp", ["logvar"], ["spread"]))
    encoder.graph.output.append(helper.make_tensor_value_info("spread", TensorProto.FLOAT, ["n", "p", "q", 2]))
    onnx_files.saved(encoder, tmp_path / "first.onnx")
    onnx_files.saved(onnx_files.open_decoder(layout="nhwc", stride=5), tmp_path / "second.onnx")
    files = ["--encoder", tmp_path / "first.onnx", "--decoder", tmp_path / "second.onnx"]
    told = ["--outputs", "mu, spread", "--scale-head", "variance", "--pixel-range=-1,1", "--layout", "nhwc"]
    result = call("onnx", *files, *told, "--stride", 5, "--max-side", 32, *every_option, tmp_path / "mine")
    assert result.exit_code == 0, result.output
    bundle = obeyed(tmp_path / "mine", most_rows=7)
    manifest = bundle.manifest
    assert (manifest.image.stride, manifest.image.max_side) == (5, 30)
    assert manifest.scale_head == "variance"
    assert manifest.source.network.endswith(": mu from mu, variance from spread")
    session = ort.InferenceSession(tmp_path / "first.onnx")
    (mu,) = session.run(["mu"], {"picture": (bundle.probe.image / 127.5 - 1).astype(np.float32)})
    np.testing.assert_allclose(bundle.probe.mu, mu.transpose(0, 3, 1, 2), atol=1e-5)


def test_torch_obeys_every_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_option: list[object]) -> None:
    (tmp_path / "own_layers.py").write_text(OWN_LAYERS)
    monkeypatch.chdir(tmp_path)
    tensors = {
        "codes.weight": np.full((2, 48), 0.5, np.float32),
        "pictures.weight": np.full((48, 2), 0.01, np.float32),
    }
    save_file(tensors, tmp_path / "weights.safetensors")
    result = call("torch", "own_layers:build", "mine", "--weights", tmp_path / "weights.safetensors", *every_option)
    assert result.exit_code == 0, result.output
    bundle = obeyed(tmp_path / "mine", most_rows=7)
    expected = bundle.probe.image.reshape(-1, 48).sum(1) / 255 / 2
    np.testing.assert_allclose(bundle.probe.mu, np.stack([expected] * 2, 1), rtol=1e-5)


# onnx and torch


@pytest.mark.parametrize("text", ["1", "0;1", "0,1,2", "black,white", ""])
def test_a_pixel_range_is_two_numbers(pair: list[str], tmp_path: Path, text: str) -> None:
    sentence = refusal("onnx", *pair, f"--pixel-range={text}", tmp_path / "mine")
    assert sentence == f"--pixel-range: got {text!r}, expected two numbers, as 0,1 or -1,1"


def test_onnx_hands_its_flags_on(pair: list[str], tmp_path: Path) -> None:
    assert "--scale-head is width" in refusal("onnx", *pair, "--scale-head", "width", tmp_path / "mine")
    assert "whchn" in refusal("onnx", *pair, "--layout", "whchn", tmp_path / "mine")
    assert "nothing_of_it" in refusal("onnx", *pair, "--outputs", "mu,nothing_of_it", tmp_path / "mine")


@pytest.mark.parametrize("text", ["mu,", "", "mu, ,logvar"])
def test_outputs_are_names(pair: list[str], tmp_path: Path, text: str) -> None:
    sentence = refusal("onnx", *pair, "--outputs", text, tmp_path / "mine")
    assert sentence == f"--outputs: got {text!r}, expected names of outputs between commas, as mu,logvar"


def test_blanks_around_the_names_of_outputs_are_none_of_them(pair: list[str], tmp_path: Path) -> None:
    assert call("onnx", *pair, "--outputs", " mu, logvar", tmp_path / "mine").exit_code == 0


OWN = """
import torch

class Halves(torch.nn.Module):
    image_shape, latent_shape = (4, 4, 1), (16,)

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(0.5))

    def encode(self, x):
        return x.flatten(1) * self.factor, x.flatten(1) - 1

    def decode(self, z):
        return (z / self.factor).reshape(-1, 1, 4, 4)
"""


OWN_LAYERS = """
import torch

class Layers(torch.nn.Module):
    image_shape, latent_shape = (4, 4, 3), (2,)

    def __init__(self):
        super().__init__()
        self.codes, self.pictures = torch.nn.Linear(48, 2, bias=False), torch.nn.Linear(2, 48, bias=False)

    def encode(self, x):
        return self.codes(x.flatten(1))

    def decode(self, z):
        return torch.sigmoid(self.pictures(z)).reshape(-1, 3, 4, 4)

build = Layers
"""


def test_torch_runs_a_persons_own_code_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_halves.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    result = call("torch", "own_halves:Halves", "mine")
    assert result.exit_code == 0, result.output
    assert result.stderr == "vae-export: running own_halves:Halves, which is your own code\n"
    assert read(tmp_path / "mine").manifest.source.network == "Halves"


# verify, inspect, pack


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_linear(tmp_path / "mine", MODEL, scorer=MODEL.scorer())
    return tmp_path / "mine"


def test_verify_prints_what_was_checked(bundle: Path) -> None:
    result = call("verify", bundle)
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 5
    assert all(line.startswith(f"{bundle}: ") for line in result.stdout.splitlines())


def test_a_packed_bundle_is_verified_and_inspected_as_its_folder_is(bundle: Path, tmp_path: Path) -> None:
    packed = call("pack", bundle)
    assert packed.exit_code == 0, packed.output
    assert packed.stdout.startswith(f"{tmp_path / 'mine.zip'}: ")
    assert call("pack", bundle, tmp_path / "named.zip").exit_code == 0
    assert (tmp_path / "named.zip").read_bytes() == (tmp_path / "mine.zip").read_bytes()
    for command in ("verify", "inspect"):
        of_folder, of_zip = (call(command, place).stdout for place in (bundle, tmp_path / "mine.zip"))
        assert of_folder.replace(str(bundle), "") == of_zip.replace(str(tmp_path / "mine.zip"), "")


@pytest.mark.parametrize("command", ["verify", "inspect", "pack"])
@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda bundle: flip_byte(bundle / "encoder.onnx"), "encoder.onnx: sha256 is"),
        (lambda bundle: edit_manifest(bundle, lambda plain: plain.update(format=2)), "manifest.json: format is 2"),
        (lambda bundle: (bundle / "manifest.json").unlink(), "manifest.json: No such file"),
    ],
    ids=["byte", "format", "manifest"],
)
def test_a_wrong_bundle_is_one_sentence(bundle: Path, command: str, break_it: object, sentence: str) -> None:
    break_it(bundle)  # type: ignore[operator]
    told = refusal(command, bundle)
    assert sentence in told
    assert "\n" not in told
    assert [path.name for path in bundle.parent.iterdir()] == ["mine"]


@pytest.mark.parametrize(("licence", "told"), [(None, "null"), ("", '""')])
def test_pack_asks_for_a_licence(tmp_path: Path, licence: str | None, told: str) -> None:
    write_linear(tmp_path / "mine", MODEL, licence=licence)
    assert f"licence is {told}, expected one in a bundle that is to be shared" in refusal("pack", tmp_path / "mine")


def test_a_device_that_does_not_start_is_one_sentence(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise BadEngine("device cuda: no driver")

    monkeypatch.setattr("export.__main__.make", failing)
    assert refusal("onnx", *pair, tmp_path / "mine") == "device cuda: no driver"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 168. GiB for an array\nof uint8"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
    ids=["numpy", "torch"],
)
def test_what_there_is_no_memory_for_is_one_sentence(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr("export.__main__.make", failing)
    told = " ".join(str(error).split())
    advice = "fewer pixels in a run (--max-run-pixels) take less as a bundle is made"
    assert refusal("onnx", *pair, tmp_path / "mine") == f"{told}; {advice}"


def test_an_error_that_is_not_of_memory_is_none_of_a_person(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr("export.__main__.make", failing)
    assert isinstance(call("onnx", *pair, tmp_path / "mine").exception, RuntimeError)


def test_without_torch_every_command_says_what_to_install() -> None:
    lacking = "import runpy, sys\nsys.modules['torch'] = None\nrunpy.run_module('export', run_name='__main__')\n"
    finished = subprocess.run([sys.executable, "-c", lacking], capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert finished.stderr == "vae-export: got no package `torch`, expected it: install vaeserve[train]\n"


def test_without_onnxruntime_every_command_says_what_to_install(tmp_path: Path) -> None:
    lacking = (
        "import runpy\n"
        "from importlib import metadata\n"
        "found = metadata.version\n"
        "def version(name):\n"
        "    if name.startswith('onnxruntime'):\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return found(name)\n"
        "metadata.version = version\n"
        "runpy.run_module('export', run_name='__main__')\n"
    )
    finished = subprocess.run([sys.executable, "-c", lacking], capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert finished.stderr.startswith("vae-export: onnxruntime: got none, expected exactly one distribution; install")
    assert len(finished.stderr.splitlines()) == 1


def test_a_failure_of_the_command_itself_has_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "export", "verify", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert (
        finished.stderr
        == f"vae-export: {tmp_path / 'manifest.json'}: No such file or directory, expected the manifest of a bundle\n"
    )
    assert finished.stdout == ""
