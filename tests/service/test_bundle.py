"""Every way in which a bundle's files can be wrong is one sentence: the file, what was found, what was expected."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.bundle import BadBundle, read
from service.manifest import DECODER, ENCODER, MANIFEST, PRIOR, PROBE, SCORER, digest
from tests.service.broken import copied, edit_manifest, flip_byte, made
from tests.service.linear import Bundles, Linear, Model, fitted_prior, open_linear, write_linear
from tests.service.wire import tensors

NO_NUMBER = "got NaN or Infinity, expected numbers that JSON has"


@pytest.fixture
def folder(bundles: Bundles, tmp_path: Path) -> Path:
    """A sound bundle, to break."""
    return copied(bundles.colour, tmp_path / "colour")


def refusal(folder: Path) -> str:
    """The one sentence of a bundle that must not be read."""
    with pytest.raises(BadBundle) as refused:
        read(folder)
    sentence = str(refused.value)
    assert "\n" not in sentence
    return sentence


def test_a_sound_bundle_reads_back_as_it_was_written(bundles: Bundles, grey: Linear) -> None:
    bundle = read(bundles.grey)
    assert bundle.manifest.name == "grey"
    assert bundle.manifest.image.shape == (28, 28, 1)
    assert bundle.manifest.latent_shape == (2, 3, 2)
    assert bundle.manifest.label == f"grey@{bundle.manifest.digest}"
    assert bundle.encoder == grey.encoder()
    assert bundle.decoder == grey.decoder()
    for name, expected in vars(grey.probe()).items():
        np.testing.assert_array_equal(getattr(bundle.probe, name), expected)


def test_a_bundle_without_scorer_and_prior_says_so(bundles: Bundles) -> None:
    bundle = read(bundles.colour)
    assert bundle.scorer is None
    assert bundle.prior is None
    assert bundle.probe.log_likelihood is None


def test_scorer_and_prior_are_read_where_they_are_there(tmp_path: Path, colour: Linear) -> None:
    write_linear(tmp_path / "b", colour, scorer=colour.scorer(), fitted=fitted_prior())
    bundle = read(tmp_path / "b")
    assert bundle.scorer == (tmp_path / "b" / SCORER).read_bytes()
    assert bundle.prior == (tmp_path / "b" / PRIOR).read_bytes()
    probe = colour.probe()
    np.testing.assert_array_equal(bundle.probe.log_likelihood, colour.log_likelihood(probe.image, probe.z))


def test_an_autoencoder_has_no_logvar(tmp_path: Path, colour: Linear) -> None:
    write_linear(tmp_path / "b", replace(colour, family="autoencoder"))
    bundle = read(tmp_path / "b")
    assert bundle.manifest.prior == "none"
    assert bundle.probe.logvar is None


def test_a_bundle_of_open_sizes_has_latents_of_any_size(tmp_path: Path) -> None:
    write_linear(tmp_path / "b", open_linear())
    manifest = read(tmp_path / "b").manifest
    assert manifest.image.is_open
    assert manifest.image.default_shape == (16, 16, 3)
    assert manifest.latent_shape_of(8, 20) == (2, 2, 5)


def test_a_manifest_survives_json(bundles: Bundles) -> None:
    manifest = read(bundles.colour).manifest
    again = type(manifest).model_validate(json.loads(manifest.model_dump_json()))
    assert again == manifest


# Files


@pytest.mark.parametrize("name", [ENCODER, DECODER, PROBE])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert refusal(folder) == f"{folder / name}: No such file or directory, the manifest lists it"


@pytest.mark.parametrize("name", [ENCODER, DECODER, PROBE])
def test_a_changed_byte_is_found(folder: Path, name: str) -> None:
    expected = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    flip_byte(folder / name)
    found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert refusal(folder) == f"{folder / name}: sha256 is {found}, the manifest says {expected}"


@pytest.mark.parametrize("name", [ENCODER, DECODER, PROBE])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_size_is_found(folder: Path, name: str, change: int) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:change] if change < 0 else content + bytes(change))
    size = len(content)
    assert refusal(folder) == f"{folder / name}: has {size + change} bytes, the manifest says {size}"


def test_a_directory_in_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / ENCODER).unlink()
    (folder / ENCODER).mkdir()
    assert refusal(folder).startswith(f"{folder / ENCODER}: ")


def test_a_file_that_is_not_listed_is_not_read(folder: Path) -> None:
    (folder / "notes.txt").write_text("nothing to see")
    assert read(folder).manifest.name == "colour"


@pytest.mark.parametrize(("one", "other"), [(ENCODER, DECODER), (DECODER, PROBE)])
def test_files_that_were_swapped_are_found(folder: Path, one: str, other: str) -> None:
    first, second = (folder / one).read_bytes(), (folder / other).read_bytes()
    (folder / one).write_bytes(second)
    (folder / other).write_bytes(first)
    sentence = refusal(folder)
    assert re.match(rf"{folder}/\S+: (has {len(second)} bytes|has {len(first)} bytes|sha256 is)", sentence)


def test_a_file_that_was_renamed_is_missing(folder: Path) -> None:
    (folder / DECODER).rename(folder / "decode.onnx")
    assert refusal(folder) == f"{folder / DECODER}: No such file or directory, the manifest lists it"


@pytest.mark.parametrize("name", [ENCODER, DECODER, PROBE])
def test_every_needed_file_must_be_listed(folder: Path, name: str) -> None:
    edit_manifest(folder, lambda plain: plain["files"].pop(name), honest_digest=True)
    assert refusal(folder) == f"{folder / MANIFEST}: files does not list {name}"


def test_a_listed_file_of_any_other_name_is_checked_too(folder: Path) -> None:
    (folder / "card.md").write_text("# A card\n")
    entry = {"sha256": hashlib.sha256(b"# A cart\n").hexdigest(), "size_bytes": 9}
    edit_manifest(folder, lambda plain: plain["files"].update({"card.md": entry}), honest_digest=True)
    assert refusal(folder).startswith(f"{folder / 'card.md'}: sha256 is ")


# The manifest


def test_a_folder_without_a_manifest_is_no_bundle(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    sentence = f"{folder / MANIFEST}: No such file or directory, expected the manifest of a bundle"
    assert refusal(folder) == sentence


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"{'name': 1}", b"[" * 100_000, b'{"a": "\\ud800"}', b"[" * 500 + b"]" * 500],
    ids=["empty", "cut", "bytes", "quotes", "deep", "half a character", "deeper than can be written"],
)
def test_a_manifest_that_is_no_json_is_refused(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    assert refusal(folder).startswith(f"{folder / MANIFEST}: not JSON")


def test_a_manifest_of_gigabytes_is_not_read_into_memory(folder: Path) -> None:
    with (folder / MANIFEST).open("ab") as file:
        file.truncate(2**31)
    assert refusal(folder) == f"{folder / MANIFEST}: larger than 8388608 bytes, expected a manifest"


@pytest.mark.parametrize("content", ["[]", "3", "null", '"format"', "{}"])
def test_json_that_is_no_manifest_has_no_format(folder: Path, content: str) -> None:
    (folder / MANIFEST).write_text(content)
    assert refusal(folder) == f"{folder / MANIFEST}: format is None, this version reads format 1"


@pytest.mark.parametrize("number", [0, 2, "1", 1.5, None])
def test_another_format_number_is_refused(folder: Path, number: object) -> None:
    edit_manifest(folder, lambda plain: plain.update(format=number))
    assert refusal(folder) == f"{folder / MANIFEST}: format is {number!r}, this version reads format 1"


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda plain: plain.update(colour="red"), "colour is 'red', extra inputs are not permitted"),
        (lambda plain: plain["image"].update(depth=2), "image.depth is 2, extra inputs are not permitted"),
        (lambda plain: plain["image"].update(channels=4), "image.channels is 4, "),
        (lambda plain: plain["image"].update(height=0), "image.height is 0, "),
        (lambda plain: plain.update(latent_shape=[]), "latent_shape is [], "),
        (lambda plain: plain.update(latent_shape=[4, 0]), "latent_shape.1 is 0, "),
        (lambda plain: plain.update(family="gan"), "family is 'gan', "),
        (lambda plain: plain.update(name="a b"), "name is 'a b', "),
        (lambda plain: plain.update(name="../up"), "name is '../up', "),
        (lambda plain: plain.update(name="a@b"), "name is 'a@b', "),
        (lambda plain: plain.update(digest="0" * 63), f"digest is '{'0' * 63}', "),
        (lambda plain: plain["tolerance"].update(mu=-1), "tolerance.fp32.mu is -1, "),
        (lambda plain: plain["tolerance"].update(mu=float("nan")), "tolerance.fp32.mu is nan, "),
        (lambda plain: plain["tolerance"].update(mu=float("inf")), "tolerance.fp32.mu is inf, "),
        (lambda plain: plain.update(tolerance=3), "tolerance.fp32 is 3, "),
        (
            lambda plain: plain.update(precision="int8", tolerance={"mu_in_sigma": 0, "psnr_db": 35}),
            "tolerance.reduced.mu_in_sigma is 0, ",
        ),
        (lambda plain: plain["parity"]["mu"].update(max=float("inf")), "parity.mu.max is inf, "),
        (
            lambda plain: plain.update(metrics={"elbo": float("nan")}),
            f"metrics: {NO_NUMBER}",
        ),
        (
            lambda plain: plain.update(metrics={"elbo": [float("inf")]}),
            f"metrics: {NO_NUMBER}",
        ),
        (lambda plain: plain.update(prior="fitted"), "prior is 'fitted', "),
        (lambda plain: plain["files"][ENCODER].update(sha256="xyz"), "files.encoder.onnx.sha256 is 'xyz', "),
        (lambda plain: plain["files"][ENCODER].update(size_bytes=0), "files.encoder.onnx.size_bytes is 0, "),
    ],
)
def test_a_wrong_field_is_named_with_what_was_found(
    folder: Path, edit: Callable[[dict[str, Any]], object], found: str
) -> None:
    edit_manifest(folder, edit)
    assert refusal(folder).startswith(f"{folder / MANIFEST}: {found}")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda plain: plain.update(family="autoencoder"), "a vae has a scale_head, an autoencoder has none"),
        (lambda plain: plain.update(prior="none"), "a vae has the prior standard, an autoencoder none"),
        (
            lambda plain: plain.update(precision="int8"),
            "tolerance is absolute in fp32 and in units of sigma and decibels below it",
        ),
        (
            lambda plain: plain.update(tolerance={"mu_in_sigma": 0.1, "psnr_db": 35}),
            "tolerance is absolute in fp32 and in units of sigma and decibels below it",
        ),
        (
            lambda plain: plain.update(latent_shape=[4, None]),
            "latent_shape is (channels, null, null) where sizes are open, and whole numbers elsewhere",
        ),
        (lambda plain: plain["image"].update(stride=4), "image: every side is a multiple of the stride 4, 6 is not"),
        (
            lambda plain: plain["image"].update(max_side=64),
            "image: open sizes have neither height nor width but default_side and max_side, others the reverse",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_named(
    folder: Path, edit: Callable[[dict[str, Any]], object], said: str
) -> None:
    edit_manifest(folder, edit, honest_digest=True)
    assert refusal(folder) == f"{folder / MANIFEST}: {said}"


def test_a_fitted_prior_of_latents_with_places_is_refused(tmp_path: Path, bundles: Bundles) -> None:
    folder = copied(bundles.grey, tmp_path / "grey")
    entry = {"sha256": "0" * 64, "size_bytes": 1}
    edit_manifest(folder, lambda plain: plain["files"].update({PRIOR: entry}), honest_digest=True)
    said = "latent_shape has one axis where prior.safetensors is there, 3 were found"
    assert refusal(folder) == f"{folder / MANIFEST}: {said}"


def test_files_of_more_bytes_than_a_bundle_may_have_are_not_read(folder: Path) -> None:
    def edit(plain: dict[str, Any]) -> None:
        plain["files"]["card.md"] = {"sha256": "0" * 64, "size_bytes": 2**32}

    edit_manifest(folder, edit)
    found = 2**32 + sum((folder / name).stat().st_size for name in (ENCODER, DECODER, PROBE))
    assert refusal(folder) == f"{folder / MANIFEST}: files have {found} bytes, expected at most 4294967296"


@pytest.mark.parametrize("field", ["name", "digest", "image", "latent_shape", "files", "tolerance", "logvar_range"])
def test_a_missing_field_is_named(folder: Path, field: str) -> None:
    edit_manifest(folder, lambda plain: plain.pop(field))
    sentence = refusal(folder)
    assert sentence.startswith(f"{folder / MANIFEST}: {field} is ")
    assert sentence.endswith("field required")


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "a/../../b", ".hidden", "a//b", "a/", "", "a\\b", "a b", "pictures/../x", "a\nb", "~"],
)
def test_a_file_name_that_could_leave_the_folder_is_refused(folder: Path, name: str) -> None:
    entry = {"sha256": "0" * 64, "size_bytes": 1}
    edit_manifest(folder, lambda plain: plain["files"].update({name: entry}), honest_digest=True)
    assert refusal(folder).startswith(f"{folder / MANIFEST}: files.")


@pytest.mark.parametrize(
    "edit",
    [
        lambda plain: plain.update(digest="0" * 64),
        lambda plain: plain.update(logvar_range=[-3, 3]),
        lambda plain: plain["likelihood"].update(sigma=0.2),
        lambda plain: plain["files"][ENCODER].update(sha256="0" * 64),
        lambda plain: plain["files"].update({SCORER: {"sha256": "0" * 64, "size_bytes": 1}}),
        lambda plain: plain["files"].update({PRIOR: {"sha256": "0" * 64, "size_bytes": 1}}),
    ],
    ids=["digest", "logvar_range", "sigma", "encoder", "a graph more", "a prior more"],
)
def test_an_edit_that_changes_answers_no_longer_fits_the_digest(
    folder: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    edit_manifest(folder, edit)
    plain = json.loads((folder / MANIFEST).read_text())
    sentence = f"{folder / MANIFEST}: digest is {plain['digest']}, its graphs and fields give {digest(plain)}"
    assert refusal(folder) == sentence


def test_the_digest_does_not_hang_on_what_changes_no_answer(folder: Path) -> None:
    before = json.loads((folder / MANIFEST).read_text())["digest"]

    def edit(plain: dict[str, Any]) -> None:
        plain.update(name="renamed", licence="MIT", metrics={"elbo": -1.0})
        plain["tolerance"]["mu"] = 1e-3

    edit_manifest(folder, edit)
    manifest = read(folder).manifest
    assert manifest.digest == before
    assert manifest.label == f"renamed@{before}"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 0.9999), byte=st.integers(0, 255))
def test_a_manifest_with_a_wrong_byte_is_read_or_refused_in_one_sentence(
    folder: Path, bundles: Bundles, place: float, byte: int
) -> None:
    content = bytearray((bundles.colour / MANIFEST).read_bytes())
    content[int(place * len(content))] = byte
    (folder / MANIFEST).write_bytes(bytes(content))
    sentence = ""
    try:
        read(folder)
    except BadBundle as refused:
        sentence = str(refused)
    assert re.fullmatch(rf"({re.escape(str(folder))}/\S+: .+)?", sentence)


# The probe


def probe_tensors(model: Model) -> dict[str, Any]:
    return {name: tensor for name, tensor in vars(model.probe()).items() if tensor is not None}


def test_a_probe_that_is_no_safetensors_is_refused(tmp_path: Path, colour: Linear) -> None:
    folder = made(tmp_path / "b", colour, raw_probe=b"not safetensors")
    assert refusal(folder).startswith(f"{folder / PROBE}: not readable as safetensors")


def test_a_probe_of_a_type_that_numpy_lacks_is_refused(tmp_path: Path, colour: Linear) -> None:
    header = b'{"mu":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    folder = made(tmp_path / "b", colour, raw_probe=len(header).to_bytes(8, "little") + header + bytes(2))
    assert refusal(folder).startswith(f"{folder / PROBE}: not readable as safetensors")


@pytest.mark.parametrize(
    "header",
    [
        b'{"mu":{"dtype":"F32","shape":[750000000],"data_offsets":[0,3000000000]}}',
        b'{"mu":{"dtype":"F32","shape":[750000000],"data_offsets":[0,4]}}',
    ],
)
@pytest.mark.parametrize("claimed", [None, 3_000_000_000])
def test_a_probe_that_claims_gigabytes_is_refused(
    tmp_path: Path, colour: Linear, header: bytes, claimed: int | None
) -> None:
    """In the size of a tensor, or of the header itself."""
    length = (claimed or len(header)).to_bytes(8, "little")
    folder = made(tmp_path / "b", colour, raw_probe=length + header + bytes(4))
    assert refusal(folder).startswith(f"{folder / PROBE}: not readable as safetensors")


@pytest.mark.parametrize("name", ["image", "mu", "logvar", "z", "decoded"])
def test_a_probe_without_one_of_its_tensors_is_refused(tmp_path: Path, colour: Linear, name: str) -> None:
    named = probe_tensors(colour)
    del named[name]
    folder = made(tmp_path / "b", colour, raw_probe=tensors(**named))
    assert f"{folder / PROBE}: {name} is nothing, expected " in refusal(folder)


@pytest.mark.parametrize("name", ["image", "mu", "logvar", "z", "decoded"])
@pytest.mark.parametrize(
    "change",
    [lambda array: array.astype(np.float64), lambda array: array[..., :1], lambda array: array[:0]],
    ids=["dtype", "shape", "rows"],
)
def test_a_probe_with_a_wrong_tensor_is_refused(
    tmp_path: Path, colour: Linear, name: str, change: Callable[[Any], Any]
) -> None:
    named = probe_tensors(colour)
    named[name] = np.ascontiguousarray(change(named[name]))
    folder = made(tmp_path / "b", colour, raw_probe=tensors(**named))
    assert re.search(r"probe\.safetensors: \w+ is \w+ \(.*\), expected \w+ \(.*\), one row or more", refusal(folder))


def test_a_probe_for_a_scorer_holds_its_answers(tmp_path: Path, colour: Linear) -> None:
    folder = made(tmp_path / "b", colour, scorer=colour.scorer())
    sentence = f"{folder / PROBE}: log_likelihood is nothing, expected float32 (4,), one row or more"
    assert refusal(folder) == sentence


@pytest.mark.parametrize("shape", [(4, 0, 16, 3), (4, 2, 16, 3)], ids=["no rows of pixels", "less than a stride"])
def test_a_probe_without_a_pixel_or_without_a_latent_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    model = open_linear()
    named = probe_tensors(model) | {"image": np.zeros(shape, np.uint8), "decoded": np.zeros(shape, np.uint8)}
    named |= dict.fromkeys(("mu", "logvar", "z"), np.zeros((4, 2, 0, 4), np.float32))
    folder = made(tmp_path / "b", model, raw_probe=tensors(**named))
    assert refusal(folder).endswith(", one row or more")
