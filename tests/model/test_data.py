"""Each reader with real little files, and each way in which files can be wrong."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


def grey(height: int, width: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width), np.uint8))


# Without a path.


def test_without_a_path_there_are_the_digits_at_full_contrast() -> None:
    digits = data.read(None)
    assert digits.name == "digits"
    assert digits.train.shape == (1617, 8, 8, 1)
    assert digits.test.shape == (180, 8, 8, 1)
    assert digits.train.dtype == np.uint8
    assert (digits.train.min(), digits.train.max()) == (0, 255)
    assert digits.train_labels is not None
    assert set(digits.train_labels) == set(range(10))


def test_the_split_and_the_hash_are_the_same_every_time() -> None:
    first, second = data.read(None), data.read(None)
    assert np.array_equal(first.test, second.test)
    assert first.sha256 == second.sha256


def test_the_hash_sees_every_pixel(idx: Path) -> None:
    before = data.read(idx)
    changed = before.test.copy()
    changed[-1, -1, -1, 0] ^= 1
    assert data.Dataset(name="a", train=before.train, test=changed).sha256 != before.sha256


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


def test_an_npz_with_a_test_part_keeps_it(tmp_path: Path) -> None:
    arrays = {"x_train": np.zeros((9, 4, 4), np.uint8), "x_test": np.ones((3, 4, 4), np.uint8)}
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
    with pytest.raises(BadData, match=r"expected an \.npz file"):
        data.read(tmp_path / "file.npy")


def test_a_pickled_npz_is_refused_and_not_run(tmp_path: Path) -> None:
    np.savez(tmp_path / "file.npz", images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(BadData, match="without pickled objects"):
        data.read(tmp_path / "file.npz")


# Folders of pictures.


def test_a_folder_is_read_with_its_subfolders_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for index, suffix in enumerate([*data.SUFFIXES, ".PNG"]):
        grey(9, 6).save(tmp_path / ("a/b" if index % 2 else "a") / f"{index}{suffix}")
    (tmp_path / "notes.txt").write_text("not a picture")
    dataset = data.read(tmp_path, channels=1)
    assert len(dataset.train) + len(dataset.test) == len(data.SUFFIXES) + 1
    assert dataset.image_shape == (9, 6, 1)


def test_pictures_that_are_all_grey_have_one_channel_and_others_three(tmp_path: Path) -> None:
    for index in range(4):
        grey(4, 4).save(tmp_path / f"{index}.png")
    assert data.read(tmp_path).image_shape == (4, 4, 1)
    assert data.read(tmp_path, channels=3).image_shape == (4, 4, 3)
    grey(4, 4).convert("RGB").save(tmp_path / "colour.png")
    assert data.read(tmp_path).image_shape == (4, 4, 3)
    assert data.read(tmp_path, channels=1).image_shape == (4, 4, 1)


def test_pictures_of_several_sizes_need_a_size_and_are_fitted_to_it(tmp_path: Path) -> None:
    for index, size in enumerate([(8, 8), (8, 8), (6, 12)]):
        grey(*size).save(tmp_path / f"{index}.png")
    with pytest.raises(BadData, match="got pictures of 2 sizes, 2 of 3 being 8x8; expected one size, or --size HxW"):
        data.read(tmp_path)
    assert data.read(tmp_path, size=(5, 7)).image_shape == (5, 7, 1)


def test_fitting_crops_the_longer_side_and_does_not_stretch(tmp_path: Path) -> None:
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 255
    for index in range(2):
        Image.fromarray(wide).save(tmp_path / f"{index}.png")
    assert (data.read(tmp_path, size=(10, 10)).train == 255).all()


def test_a_picture_on_its_side_is_turned_before_its_size_is_read(tmp_path: Path) -> None:
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    for index in range(2):
        Image.fromarray(picture).save(tmp_path / f"{index}.png", exif=exif)
    train = data.read(tmp_path).train
    assert train.shape[1:] == (8, 4, 3)
    assert (train[0, :4] == 255).all()
    assert (train[0, 4:] == 0).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_black(tmp_path: Path, mode: str) -> None:
    pixels = np.full((4, 4, 4), 255, np.uint8)
    pixels[:2, :, 3] = 0
    for index in range(2):
        Image.fromarray(pixels).convert(mode).save(tmp_path / f"{index}.png")
    train = data.read(tmp_path, channels=1).train
    assert train[0, :, 0, 0].tolist() == [0, 0, 255, 255]


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
    for index in range(2):
        Image.fromarray(ramp).save(tmp_path / f"{index}.png")
    assert np.array_equal(data.read(tmp_path).train[0, :, :, 0], (ramp >> 8).astype(np.uint8))


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    for index in range(3):
        grey(40, 40).save(tmp_path / f"{index}.png")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadData, match=r"1\.png: got .*truncated.*, expected a whole picture in one of PNG"):
        data.read(tmp_path)
    (tmp_path / "1.png").write_bytes(b"hello")
    with pytest.raises(BadData, match=r"1\.png: got cannot identify.*, expected a whole picture"):
        data.read(tmp_path)


def test_a_picture_without_an_agreed_range_is_refused(tmp_path: Path) -> None:
    for index in range(2):
        Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / f"{index}.tiff")
    with pytest.raises(BadData, match="got a picture of mode F, expected at most 16 bits a channel"):
        data.read(tmp_path)


# Paths and options.


def test_a_path_without_anything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="got nothing there, expected a folder of pictures"):
        data.read(tmp_path / "absent")
    with pytest.raises(BadData, match=r"got no pictures, expected files named \*\.png"):
        data.read(tmp_path)


def test_a_lone_picture_cannot_be_split(tmp_path: Path) -> None:
    grey(4, 4).save(tmp_path / "0.png")
    with pytest.raises(BadData, match="got 1 pictures, expected at least 2"):
        data.read(tmp_path)


@pytest.mark.parametrize(("size", "channels"), [((0, 4), 1), ((4, 4), 2)])
def test_a_size_or_channel_count_that_no_picture_can_have_is_refused(
    tmp_path: Path, size: tuple[int, int], channels: int
) -> None:
    grey(4, 4).save(tmp_path / "0.png")
    with pytest.raises(BadData, match="expected sides from 1 and 1 or 3 channels"):
        data.read(tmp_path, size=size, channels=channels)


def test_arrays_are_not_resized(idx: Path) -> None:
    assert data.read(idx, size=(7, 5), channels=1).image_shape == (7, 5, 1)
    with pytest.raises(BadData, match=r"got pictures of shape \(7, 5, 1\), expected \(8, 8, 1\)"):
        data.read(idx, size=(8, 8))
    with pytest.raises(BadData, match=r"expected \(7, 5, 3\)"):
        data.read(idx, channels=3)
