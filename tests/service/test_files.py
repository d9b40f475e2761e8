"""A bundle is read from a folder or from one zip alike; what leaves either, or claims more than it has, is refused."""

import hashlib
import os
import stat
import tracemalloc
import warnings
from pathlib import Path
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZIP_LZMA, ZIP_STORED, ZipFile, ZipInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.bundle import BadBundle, read
from service.manifest import DECODER, ENCODER, MANIFEST, PROBE
from tests.service.broken import copied, edit_manifest, flip_byte, with_claim, zipped
from tests.service.linear import Bundles

# What reading a bundle of some kilobytes may take, whatever its zip claims.
FEW_BYTES = 2**22


@pytest.fixture
def folder(bundles: Bundles, tmp_path: Path) -> Path:
    """A sound bundle, to break."""
    return copied(bundles.colour, tmp_path / "colour")


@pytest.fixture
def packed(folder: Path, tmp_path: Path) -> Path:
    """The same in one zip."""
    return zipped(folder, tmp_path / "colour.zip")


def refusal(path: Path) -> str:
    """The one sentence of a bundle that must not be read."""
    with pytest.raises(BadBundle) as refused:
        read(path)
    sentence = str(refused.value)
    assert "\n" not in sentence
    return sentence


# Sound bundles


@pytest.mark.parametrize("compression", [ZIP_STORED, ZIP_DEFLATED])
def test_a_zip_holds_the_bundle_of_its_folder(folder: Path, tmp_path: Path, compression: int) -> None:
    one, other = read(folder), read(zipped(folder, tmp_path / "b.zip", compression=compression))
    assert other.manifest == one.manifest
    assert (other.encoder, other.decoder) == (one.encoder, one.decoder)
    assert (other.probe.mu == one.probe.mu).all()


def test_a_zip_may_hold_files_in_folders(folder: Path, tmp_path: Path) -> None:
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(b"a picture")
    entry = {"sha256": hashlib.sha256(b"a picture").hexdigest(), "size_bytes": 9}
    edit_manifest(folder, lambda plain: plain["files"].update({"pictures/a.png": entry}))
    assert "pictures/a.png" in read(zipped(folder, tmp_path / "b.zip")).manifest.files


def test_nothing_is_extracted(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    read(packed)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bundle_is_found_through_a_link_to_it(folder: Path, packed: Path, tmp_path: Path) -> None:
    for path in (folder, packed):
        link = tmp_path / f"link to {path.name}"
        link.symlink_to(path)
        assert read(link).manifest.name == "colour"


# No bundle


def test_a_path_that_does_not_exist_is_no_bundle(tmp_path: Path) -> None:
    path = tmp_path / "nowhere"
    assert refusal(path) == f"{path}: No such file or directory, expected a bundle, which is a folder or one zip"


@pytest.mark.parametrize("content", [b"", b"PK", b"{}", bytes(1000)], ids=["empty", "short", "json", "zeros"])
def test_a_file_that_is_no_zip_is_no_bundle(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert refusal(path) == f"{path}: File is not a zip file, expected a bundle, which is a folder or one zip"


def test_a_pipe_is_no_bundle_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    sentence = refusal(tmp_path / "pipe")
    assert sentence == f"{tmp_path / 'pipe'}: is no regular file, expected a bundle, which is a folder or one zip"


def test_a_zip_without_a_manifest_is_no_bundle(folder: Path, tmp_path: Path) -> None:
    (folder / MANIFEST).unlink()
    path = zipped(folder, tmp_path / "b.zip")
    assert refusal(path) == f"{path / MANIFEST}: No such file or directory, expected the manifest of a bundle"


# Links and other files that are none


def test_a_link_in_place_of_a_file_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / ENCODER).rename(tmp_path / "outside.onnx")
    (folder / ENCODER).symlink_to(tmp_path / "outside.onnx")
    assert refusal(folder) == f"{folder / ENCODER}: is a symbolic link, expected a file inside the bundle"


def test_a_link_in_place_of_the_manifest_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / MANIFEST).rename(tmp_path / "outside.json")
    (folder / MANIFEST).symlink_to(tmp_path / "outside.json")
    assert refusal(folder) == f"{folder / MANIFEST}: is a symbolic link, expected a file inside the bundle"


def test_a_link_on_the_way_to_a_file_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.png").write_bytes(b"png")
    (folder / "pictures").symlink_to(tmp_path / "outside")
    entry = {"sha256": "0" * 64, "size_bytes": 3}
    edit_manifest(folder, lambda plain: plain["files"].update({"pictures/a.png": entry}))
    assert refusal(folder) == f"{folder / 'pictures'}: is a symbolic link, expected a file inside the bundle"


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(folder: Path) -> None:
    (folder / DECODER).unlink()
    os.mkfifo(folder / DECODER)
    assert refusal(folder) == f"{folder / DECODER}: is no regular file, expected one"


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (stat.S_IFLNK | 0o777, "is a symbolic link, expected a file inside the bundle"),
        (stat.S_IFIFO | 0o600, "is no regular file, expected one"),
        (stat.S_IFCHR | 0o600, "is no regular file, expected one"),
    ],
)
def test_an_entry_that_is_no_regular_file_is_refused(packed: Path, mode: int, said: str) -> None:
    entry = ZipInfo("card.md")
    entry.external_attr = mode << 16
    with ZipFile(packed, "a") as archive:
        archive.writestr(entry, "/etc/passwd")
    assert refusal(packed) == f"{packed / 'card.md'}: {said}"


# Names


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "a/../../b", "pictures/", ".hidden", "a\\b", "C:\\b", "a//b", "./a", "a\nb", "x\0.md"],
)
def test_an_entry_whose_name_could_leave_the_folder_is_refused(packed: Path, name: str) -> None:
    entry = ZipInfo("placeholder")
    entry.filename = name
    with ZipFile(packed, "a") as archive:
        archive.writestr(entry, "outside")
    assert refusal(packed) == f"{packed}: holds {name!r}, expected names of files inside the bundle"


def test_a_name_that_comes_twice_is_refused(packed: Path) -> None:
    with ZipFile(packed, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's own, of the name
        archive.writestr(ENCODER, "another")
    assert refusal(packed) == f"{packed}: holds {ENCODER} twice, expected each file once"


def test_an_entry_that_the_manifest_does_not_list_is_refused(packed: Path) -> None:
    with ZipFile(packed, "a") as archive:
        archive.writestr("notes.txt", "nothing to see")
    assert refusal(packed) == f"{packed / 'notes.txt'}: is there, the manifest does not list it"


@pytest.mark.parametrize("name", [ENCODER, DECODER, PROBE])
def test_an_entry_that_is_missing_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).unlink()
    path = zipped(folder, tmp_path / "b.zip")
    assert refusal(path) == f"{path / name}: No such file or directory, the manifest lists it"


# Bytes


def test_an_entry_with_a_changed_byte_is_found(folder: Path, tmp_path: Path) -> None:
    flip_byte(folder / ENCODER)
    path = zipped(folder, tmp_path / "b.zip")
    assert refusal(path).startswith(f"{path / ENCODER}: sha256 is ")


@pytest.mark.parametrize("change", [-1, 1])
def test_an_entry_of_a_wrong_size_is_found(folder: Path, tmp_path: Path, change: int) -> None:
    content = (folder / ENCODER).read_bytes()
    (folder / ENCODER).write_bytes(content[:change] if change < 0 else content + bytes(change))
    path = zipped(folder, tmp_path / "b.zip")
    size = len(content)
    assert refusal(path) == f"{path / ENCODER}: has {size + change} bytes, the manifest says {size}"


def test_an_encrypted_entry_is_refused(packed: Path) -> None:
    with_claim(packed, ENCODER, flags=1)
    assert refusal(packed) == f"{packed / ENCODER}: is encrypted, expected a plain entry"


@pytest.mark.parametrize(("compression", "method"), [(ZIP_BZIP2, 12), (ZIP_LZMA, 14)])
def test_a_compression_other_than_deflate_is_refused(
    folder: Path, tmp_path: Path, compression: int, method: int
) -> None:
    path = zipped(folder, tmp_path / "b.zip", compression=compression)
    sentence = f"{path / DECODER}: is compressed by method {method}, expected stored or deflate"
    assert refusal(path) == sentence


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_zip_is_refused(packed: Path, share: float) -> None:
    content = packed.read_bytes()
    packed.write_bytes(content[: int(share * len(content))])
    assert refusal(packed).startswith(f"{packed}: ")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 0.9999), byte=st.integers(0, 255))
def test_a_zip_with_a_wrong_byte_is_read_whole_or_refused_in_one_sentence(
    packed: Path, folder: Path, place: float, byte: int
) -> None:
    sound = read(folder)
    zipped(folder, packed)
    content = bytearray(packed.read_bytes())
    content[int(place * len(content))] = byte
    packed.write_bytes(bytes(content))
    sentence = str(packed)
    try:
        bundle = read(packed)
        assert (bundle.manifest, bundle.encoder, bundle.decoder) == (sound.manifest, sound.encoder, sound.decoder)
    except BadBundle as refused:
        sentence = str(refused)
    assert sentence.startswith(str(packed))
    assert "\n" not in sentence


# Claims


def refusal_in_few_bytes(path: Path) -> str:
    """The one sentence, which must come before memory is taken for what is claimed."""
    tracemalloc.start()
    try:
        sentence = refusal(path)
        assert tracemalloc.get_traced_memory()[1] < FEW_BYTES
    finally:
        tracemalloc.stop()
    return sentence


def test_three_gigabytes_in_a_kilobyte_are_not_believed(folder: Path, packed: Path) -> None:
    size = (folder / ENCODER).stat().st_size
    with ZipFile(packed) as archive:
        compressed = archive.getinfo(ENCODER).compress_size
    assert compressed < size
    with_claim(packed, ENCODER, size=3_000_000_000)
    claim = f"claims 3000000000 bytes in {compressed} compressed ones, which hold at most {1032 * compressed}"
    assert refusal_in_few_bytes(packed) == f"{packed / ENCODER}: {claim}"


def test_three_gigabytes_that_are_stored_in_a_kilobyte_are_not_believed(folder: Path, tmp_path: Path) -> None:
    path = zipped(folder, tmp_path / "b.zip", compression=ZIP_STORED)
    size = (folder / ENCODER).stat().st_size
    with_claim(path, ENCODER, size=3_000_000_000)
    claim = f"claims 3000000000 bytes in {size} compressed ones, which hold at most {size}"
    assert refusal_in_few_bytes(path) == f"{path / ENCODER}: {claim}"


def test_compressed_bytes_that_the_zip_does_not_have_are_not_believed(packed: Path) -> None:
    with_claim(packed, ENCODER, size=3_000_000_000, compressed=3_000_000)
    with ZipFile(packed) as archive:
        compressed = sum(entry.compress_size for entry in archive.infolist())
    sentence = f"{packed}: entries claim {compressed} compressed bytes, the file has {packed.stat().st_size}"
    assert refusal_in_few_bytes(packed) == sentence


def test_three_gigabytes_in_the_manifest_alone_are_not_believed(folder: Path, tmp_path: Path) -> None:
    size = (folder / ENCODER).stat().st_size
    edit_manifest(folder, lambda plain: plain["files"][ENCODER].update(size_bytes=3_000_000_000))
    for path in (folder, zipped(folder, tmp_path / "b.zip")):
        sentence = f"{path / ENCODER}: has {size} bytes, the manifest says 3000000000"
        assert refusal_in_few_bytes(path) == sentence


def test_more_bytes_than_an_entry_claims_are_not_inflated(folder: Path, tmp_path: Path) -> None:
    size = (folder / ENCODER).stat().st_size
    (folder / ENCODER).write_bytes(bytes(2**27))
    path = zipped(folder, tmp_path / "b.zip")
    with_claim(path, ENCODER, size=size)
    assert refusal_in_few_bytes(path).startswith(f"{path / ENCODER}: cannot be read (Bad CRC-32")


def test_a_manifest_of_gigabytes_in_a_zip_is_not_inflated(folder: Path, tmp_path: Path) -> None:
    (folder / MANIFEST).write_bytes(bytes(2**27))
    path = zipped(folder, tmp_path / "b.zip")
    assert refusal_in_few_bytes(path) == f"{path / MANIFEST}: larger than 8388608 bytes, expected a manifest"
