"""Each kind of array file with real little files, and each way in which they can be wrong."""

import gzip
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from model import data
from model.errors import BadData

RNG = np.random.default_rng(0)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def idx(tmp_path: Path) -> Path:
    folder = tmp_path / "letters"
    folder.mkdir()
    write_idx(folder / "train-images-idx3-ubyte.gz", RNG.integers(0, 256, (20, 7, 5), np.uint8))
    write_idx(folder / "train-labels-idx1-ubyte.gz", RNG.integers(0, 10, 20, np.uint8))
    write_idx(folder / "t10k-images-idx3-ubyte.gz", RNG.integers(0, 256, (6, 7, 5), np.uint8))
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", RNG.integers(0, 10, 6, np.uint8))
    return folder


# IDX.


def test_idx_files_keep_their_order_their_test_part_and_their_labels(idx: Path) -> None:
    dataset = data.read(idx)
    assert dataset.name == "letters"
    assert dataset.image_shape == (7, 5, 1)
    assert dataset.train.flags.writeable
    raw = gzip.decompress((idx / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    assert dataset.train.tobytes() == raw
    assert len(dataset.test) == 6
    assert dataset.train_labels is not None
    assert dataset.train_labels.tolist() == list(gzip.decompress((idx / "train-labels-idx1-ubyte.gz").read_bytes())[8:])


def test_idx_files_without_labels_are_pictures_all_the_same(idx: Path) -> None:
    (idx / "train-labels-idx1-ubyte.gz").unlink()
    dataset = data.read(idx)
    assert dataset.train_labels is None
    assert dataset.test_labels is not None


def test_an_idx_folder_without_its_test_part_is_refused(idx: Path) -> None:
    (idx / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(BadData, match=r"t10k-images.*got no such file, expected it beside"):
        data.read(idx)


def test_a_truncated_gzip_file_is_refused(idx: Path) -> None:
    path = idx / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadData, match="expected a whole gzip file"):
        data.read(idx)


def test_a_file_that_is_not_gzip_is_refused(idx: Path) -> None:
    (idx / "t10k-images-idx3-ubyte.gz").write_bytes(b"hello")
    with pytest.raises(BadData, match="expected a whole gzip file"):
        data.read(idx)


def test_another_idx_type_is_refused(idx: Path) -> None:
    (idx / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes([0, 0, 13, 3]) + bytes(100)))
    with pytest.raises(BadData, match="got header 00000d03, expected 00000803"):
        data.read(idx)


def test_an_idx_file_with_fewer_values_than_its_header_says_is_refused(idx: Path) -> None:
    header = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 5])
    (idx / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + bytes(69)))
    with pytest.raises(BadData, match=r"got 69 values, expected \(2, 7, 5\)"):
        data.read(idx)


def test_a_test_part_of_another_size_is_refused(idx: Path) -> None:
    write_idx(idx / "t10k-images-idx3-ubyte.gz", np.zeros((6, 5, 7), np.uint8))
    with pytest.raises(BadData, match=r"got test pictures of shape \(5, 7, 1\), expected \(7, 5, 1\)"):
        data.read(idx)


def test_labels_of_another_count_are_refused(idx: Path) -> None:
    write_idx(idx / "train-labels-idx1-ubyte.gz", np.zeros(19, np.uint8))
    with pytest.raises(BadData, match="got 19 labels, expected 20"):
        data.read(idx)


# npz.


@pytest.mark.parametrize("name", ["images", "x_train", "arr_0"])
@pytest.mark.parametrize("shape", [(20, 6, 4), (20, 6, 4, 1), (20, 6, 4, 3)])
def test_an_npz_is_split_and_its_labels_go_with_its_pictures(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    images = np.zeros(shape, np.uint8)
    images += np.arange(20, dtype=np.uint8).reshape(-1, *[1] * (len(shape) - 1))
    np.savez(tmp_path / "file.npz", **{name: images, "labels": np.arange(20)})
    dataset = data.read(tmp_path / "file.npz")
    assert dataset.name == "file"
    assert dataset.image_shape == (6, 4, shape[3] if len(shape) == 4 else 1)
    assert (len(dataset.train), len(dataset.test)) == (18, 2)
    assert dataset.test_labels is not None
    assert dataset.train_labels is not None
    assert dataset.test[:, 0, 0, 0].tolist() == dataset.test_labels.tolist()
    assert sorted([*dataset.train_labels, *dataset.test_labels]) == list(range(20))


@pytest.mark.parametrize("name", ["images", "x_train"])
def test_an_npz_with_a_test_part_keeps_it(tmp_path: Path, name: str) -> None:
    arrays = {name: np.zeros((9, 4, 4), np.uint8), "x_test": np.ones((3, 4, 4), np.uint8)}
    np.savez(tmp_path / "file.npz", **arrays, y_train=np.arange(9), y_test=np.arange(3)[:, None])
    dataset = data.read(tmp_path / "file.npz")
    assert dataset.test.sum() == 3 * 16
    assert dataset.test_labels is not None
    assert dataset.test_labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"images": np.zeros((4, 3, 3), np.float32)}, r"images: got float32 of shape \(4, 3, 3\), expected uint8"),
        ({"images": np.zeros((4, 9), np.uint8)}, r"images: got uint8 of shape \(4, 9\)"),
        ({"images": np.zeros((0, 3, 3), np.uint8)}, r"images: got uint8 of shape \(0, 3, 3\)"),
        ({"images": np.zeros((1, 3, 3), np.uint8)}, "got 1 pictures, expected at least 2"),
        ({"images": np.zeros((4, 3, 3, 2), np.uint8)}, "got pictures of 2 channels, expected 1"),
        ({"images": np.zeros((4, 3, 3), np.uint8), "labels": np.zeros(3, int)}, "labels: got int64 of shape"),
        ({"images": np.zeros((4, 3, 3), np.uint8), "labels": np.zeros(4)}, "labels: got float64"),
        ({"a": np.zeros((4, 3, 3), np.uint8), "b": np.zeros((4, 3, 3), np.uint8)}, r"got a uint8\[4, 3, 3\], b"),
        ({"a": np.zeros(3)}, r"got a float64\[3\], expected an array `images`"),
        ({}, "got nothing, expected an array"),
        (
            {"x_train": np.zeros((4, 3, 3), np.uint8), "x_test": np.zeros((4, 3, 2), np.uint8)},
            r"got x_test of shape \(4, 3, 2, 1\), expected \(n, 3, 3, 1\)",
        ),
    ],
)
def test_an_npz_without_pictures_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], sentence: str) -> None:
    np.savez(tmp_path / "file.npz", **arrays)
    with pytest.raises(BadData, match=sentence):
        data.read(tmp_path / "file.npz")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 and no more"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.npz").write_bytes(content)
    with pytest.raises(BadData, match=r"expected an \.npz file"):
        data.read(tmp_path / "file.npz")


def test_a_lone_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "file.npy", np.zeros((4, 3, 3), np.uint8))
    (tmp_path / "file.npy").rename(tmp_path / "file.npz")
    with pytest.raises(BadData, match=r"expected an \.npz file"):
        data.read(tmp_path / "file.npz")


@pytest.mark.parametrize("name", ["one.png", "notes.txt", "file.npy", "photos"])
def test_a_file_of_another_kind_is_refused_with_what_is_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"some")
    with pytest.raises(
        BadData, match=f"{name}: got a file of another kind, expected a folder or zip of pictures, a fol"
    ):
        data.read(tmp_path / name)


def test_a_pickled_npz_is_refused_and_not_run(tmp_path: Path) -> None:
    np.savez(tmp_path / "file.npz", images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(BadData, match=r"images: got object of shape \(1,\), expected uint8"):
        data.read(tmp_path / "file.npz")


def test_of_an_npz_nothing_is_read_but_pictures_and_labels(tmp_path: Path) -> None:
    others = {"notes": np.array([{"a": 1}], dtype=object), "latents": RNG.normal(size=(20, 3))}
    np.savez(tmp_path / "file.npz", images=np.zeros((20, 4, 4), np.uint8), labels=np.arange(20), **others)
    dataset = data.read(tmp_path / "file.npz")
    assert (len(dataset.train), len(dataset.test)) == (18, 2)


def test_an_npz_of_a_later_version_of_the_format_is_read(tmp_path: Path) -> None:
    content = BytesIO()
    np.lib.format.write_array(content, np.zeros((20, 4, 4), np.uint8), version=(2, 0))
    with zipfile.ZipFile(tmp_path / "file.npz", "w") as archive:
        archive.writestr("images.npy", content.getvalue())
    assert data.read(tmp_path / "file.npz").image_shape == (4, 4, 1)


def test_arrays_are_not_resized(idx: Path) -> None:
    assert data.read(idx, size=(7, 5), channels=1).image_shape == (7, 5, 1)
    with pytest.raises(BadData, match=r"got pictures of shape \(7, 5, 1\), expected \(8, 8, 1\)"):
        data.read(idx, size=(8, 8))
    with pytest.raises(BadData, match=r"expected \(7, 5, 3\)"):
        data.read(idx, channels=3)


def test_an_array_that_no_memory_holds_is_refused_before_it_is_read(tmp_path: Path) -> None:
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**50, 8, 8)})
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue())
    with pytest.raises(
        BadData, match=r"huge\.npz, images: got uint8 of shape \(1125899906842624, 8, 8\), 67,108,864 GiB"
    ):
        data.read(tmp_path / "huge.npz")


def test_a_member_under_a_password_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "locked.npz"
    np.savez(path, images=np.zeros((4, 8, 8), np.uint8))
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags] |= 1
    path.write_bytes(content)
    with pytest.raises(BadData, match="is encrypted, password required"):
        data.read(path)
