"""A bundle as one file."""

import os
import time
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import pytest

from export import pack as packing
from export.bundle import CannotWrite
from export.pack import pack
from export.proof import prove
from service.bundle import BadBundle, read
from tests.service.broken import edit_manifest, flip_byte
from tests.service.linear import linear, write_linear

MODEL = linear((28, 28, 1), (4,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_linear(tmp_path / "mine", MODEL, scorer=MODEL.scorer())
    return tmp_path / "mine"


def test_a_packed_bundle_is_the_bundle(folder: Path, tmp_path: Path) -> None:
    size = pack(folder, tmp_path / "mine.zip")
    assert size == (tmp_path / "mine.zip").stat().st_size
    assert read(tmp_path / "mine.zip").manifest == read(folder).manifest
    assert prove(tmp_path / "mine.zip") == prove(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine.zip"]


def test_a_packed_bundle_holds_the_manifest_and_its_files_sorted_stored_and_without_times(
    folder: Path, tmp_path: Path
) -> None:
    pack(folder, tmp_path / "mine.zip")
    with ZipFile(tmp_path / "mine.zip") as archive:
        members = archive.infolist()
    names = ["decoder.onnx", "encoder.onnx", "manifest.json", "probe.safetensors", "scorer.onnx"]
    assert [member.filename for member in members] == names
    assert {(member.compress_type, member.date_time) for member in members} == {(ZIP_STORED, (1980, 1, 1, 0, 0, 0))}


def test_packing_twice_gives_equal_bytes_whatever_the_times_and_modes_of_files(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "first.zip")
    os.utime(folder / "encoder.onnx", (0, time.time() - 1e6))
    (folder / "encoder.onnx").chmod(0o600)
    pack(folder, tmp_path / "second.zip")
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()


@pytest.mark.parametrize("refused", ["mine", "its zip"])
def test_neither_a_folder_nor_its_zip_gets_a_name_without_proof(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    def proved(place: Path) -> None:
        if (place == folder) == (refused == "mine"):
            raise BadBundle("not equal")

    monkeypatch.setattr(packing, "prove", proved)
    with pytest.raises(BadBundle, match="not equal"):
        pack(folder, tmp_path / "mine.zip")
    assert list(tmp_path.iterdir()) == [folder]


def test_a_bundle_without_a_licence_is_not_packed(tmp_path: Path) -> None:
    write_linear(tmp_path / "mine", MODEL, licence=None)
    with pytest.raises(CannotWrite) as refused:
        pack(tmp_path / "mine", tmp_path / "mine.zip")
    assert str(refused.value) == (
        f"{tmp_path / 'mine' / 'manifest.json'}: licence is null, expected one in a bundle that is to be shared;"
        " make it again with --licence 'NAME; what it was trained on'"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_broken_bundle_is_not_packed(folder: Path, tmp_path: Path) -> None:
    flip_byte(folder / "decoder.onnx")
    with pytest.raises(BadBundle, match=r"decoder\.onnx: sha256 is"):
        pack(folder, tmp_path / "mine.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_what_does_not_prove_itself_gets_no_name(folder: Path, tmp_path: Path) -> None:
    edit_manifest(folder, lambda plain: plain["parity"].update(shapes=[[1, 5, 5]]))
    with pytest.raises(BadBundle) as refused:
        pack(folder, tmp_path / "mine.zip")
    assert str(refused.value).startswith(f"{folder / 'manifest.json'}: parity.shapes has (1, 5, 5), expected ")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_zip_is_no_folder_to_pack(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "mine.zip")
    with pytest.raises(CannotWrite, match=r"mine\.zip: got a file, expected the folder of a bundle"):
        pack(tmp_path / "mine.zip", tmp_path / "again.zip")


def test_an_existing_file_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.zip").write_text("mine")
    with pytest.raises(CannotWrite, match=r"mine\.zip: exists already"):
        pack(folder, tmp_path / "mine.zip")
    assert (tmp_path / "mine.zip").read_text() == "mine"
