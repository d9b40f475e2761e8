"""The data set itself: its parts, its hash, its validation part, and which reader each kind of path gets."""

import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model import data
from model.errors import BadData

RNG = np.random.default_rng(0)


def grey(height: int, width: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width), np.uint8))


def numbered(n: int, *, labels: bool = True, n_validation: int = 0) -> data.Dataset:
    """Picture i of train has all pixels i, and label i."""
    images = np.arange(n, dtype=np.uint8).repeat(6).reshape(n, 2, 3, 1)
    return data.Dataset(
        name="numbered",
        train=images,
        test=images[:2],
        train_labels=np.arange(n) if labels else None,
        validation=np.full((n_validation, 2, 3, 1), 200, np.uint8),
    )


# Without a path.


def test_without_a_path_there_are_the_digits_at_full_contrast() -> None:
    digits = data.read(None)
    assert digits.name == "digits"
    assert digits.train.shape == (1617, 8, 8, 1)
    assert digits.test.shape == (180, 8, 8, 1)
    assert digits.validation.shape == (0, 8, 8, 1)
    assert digits.train.dtype == np.uint8
    assert (digits.train.min(), digits.train.max()) == (0, 255)
    assert digits.train_labels is not None
    assert set(digits.train_labels) == set(range(10))
    assert (digits.skipped, digits.n_skipped) == ((), 0)


def test_the_split_and_the_hash_are_the_same_every_time() -> None:
    first, second = data.read(None), data.read(None)
    assert np.array_equal(first.test, second.test)
    assert first.sha256 == second.sha256


# The hash.


def test_a_hash_that_a_run_has_stored_stays_true() -> None:
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4, 1)
    dataset = data.Dataset(name="any", train=images, test=images[:1])
    assert dataset.sha256 == "369e37f293de5c57b03314ea73bc0c810f79c15a9d85770e3352b89daee2a367"


@pytest.mark.parametrize("part", ["train", "test", "validation"])
def test_the_hash_sees_every_pixel_of_each_part(part: str) -> None:
    parts = {"train": np.zeros((4, 2, 2, 1), np.uint8), "test": np.zeros((2, 2, 2, 1), np.uint8)}
    parts["validation"] = np.zeros((3, 2, 2, 1), np.uint8)
    before = data.Dataset(name="a", **parts).sha256
    parts[part] = parts[part].copy()
    parts[part][-1, -1, -1, 0] ^= 1
    assert data.Dataset(name="a", **parts).sha256 != before


def test_the_hash_sees_to_which_part_a_picture_belongs() -> None:
    hashes = {data.with_validation(numbered(10), n, seed=seed).sha256 for n in (0, 3, 4) for seed in (0, 1)}
    assert len(hashes) == 5  # without a validation part the seed changes nothing


# Validation.


def test_validation_takes_pictures_with_their_labels_out_of_train_in_order() -> None:
    after = data.with_validation(numbered(50), 7, seed=3)
    assert (len(after.train), len(after.validation), len(after.test)) == (43, 7, 2)
    assert after.train_labels is not None
    assert after.validation_labels is not None
    assert after.train[:, 0, 0, 0].tolist() == after.train_labels.tolist() == sorted(after.train_labels)
    assert after.validation[:, 0, 0, 0].tolist() == after.validation_labels.tolist() == sorted(after.validation_labels)
    assert sorted([*after.train_labels, *after.validation_labels]) == list(range(50))


@pytest.mark.parametrize(("n", "n_drawn", "at_once"), [(1000, 100, 7), (1000, 999, 7), (17, 1, 1), (300, 150, 4096)])
def test_rows_are_drawn_and_kept_in_order_whatever_memory_they_come_to_lie_in(
    monkeypatch: pytest.MonkeyPatch, n: int, n_drawn: int, at_once: int
) -> None:
    monkeypatch.setattr(data, "_MOVED_ROWS", at_once)
    images, labels = RNG.integers(0, 256, (n, 3, 2, 1), np.uint8), RNG.integers(0, 10, n)
    order = np.random.default_rng(5).permutation(n)
    drawn, others = np.sort(order[:n_drawn]), np.sort(order[n_drawn:])
    expected = images[drawn], labels[drawn], images[others], labels[others]
    whole = data.Dataset(name="random", train=images, test=images[:2].copy(), train_labels=labels)
    after = data.with_validation(whole, n_drawn, seed=5)
    assert after.is_validation_drawn
    got = after.validation, after.validation_labels, after.train, after.train_labels
    for found, wanted in zip(got, expected, strict=True):
        assert found is not None
        np.testing.assert_array_equal(found, wanted)
        assert found.flags.c_contiguous


def test_drawing_takes_memory_for_what_is_drawn_and_not_for_all_else() -> None:
    whole = data.Dataset(
        name="large", train=np.zeros((2**12, 64, 64, 1), np.uint8), test=np.zeros((1, 64, 64, 1), np.uint8)
    )
    tracemalloc.start()
    data.with_validation(whole, 2**8, seed=0)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < whole.train.nbytes / 2


def test_the_seed_draws_the_validation_part() -> None:
    def drawn(seed: int) -> list[int]:
        return data.with_validation(numbered(50, labels=False), 7, seed=seed).validation[:, 0, 0, 0].tolist()

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    assert data.with_validation(numbered(50, labels=False), 7, seed=3).validation_labels is None


def test_no_validation_leaves_train_as_it_is() -> None:
    before = numbered(50)
    assert data.with_validation(before, 0, seed=3) is before


def test_a_validation_part_of_the_source_is_kept() -> None:
    before = numbered(50, n_validation=4)
    assert data.with_validation(before, 7, seed=3) is before


@pytest.mark.parametrize("n", [-1, 50, 51])
def test_validation_leaves_something_to_train_on(n: int) -> None:
    with pytest.raises(BadData, match=f"got {n} pictures to validate on, expected fewer than the 50"):
        data.with_validation(numbered(50), n, seed=3)


# Paths.


def test_a_path_without_anything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="got nothing there, expected a folder or zip of pictures"):
        data.read(tmp_path / "absent")
    with pytest.raises(BadData, match=r"got no pictures, expected files named \*\.png"):
        data.read(tmp_path)


def test_a_lone_picture_cannot_be_split(tmp_path: Path) -> None:
    grey(4, 4).save(tmp_path / "0.png")
    with pytest.raises(BadData, match="got 1 pictures, expected at least 2"):
        data.read(tmp_path)


def test_a_path_may_be_text(tmp_path: Path) -> None:
    for index in range(2):
        grey(4, 4).save(tmp_path / f"{index}.png")
    assert data.read(str(tmp_path)).sha256 == data.read(tmp_path).sha256


def test_a_zip_gives_the_data_set_of_the_folder_that_it_was_made_of(tmp_path: Path) -> None:
    for index in range(30):
        path = tmp_path / "photos" / ("cats" if index % 3 else "dogs") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey(4, 4).save(path)
    shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path, "photos")
    folder, archive = data.read(tmp_path / "photos"), data.read(tmp_path / "photos.zip")
    assert folder.name == archive.name == "photos"
    assert folder.sha256 == archive.sha256
    assert folder.train_labels is not None
    assert np.array_equal(folder.train_labels, archive.train_labels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "photos.zip"]  # nothing was extracted


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 and no more"])
def test_a_file_that_is_no_zip_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.zip").write_bytes(content)
    with pytest.raises(BadData, match=r"expected a zip of pictures"):
        data.read(tmp_path / "file.zip")


def test_a_folder_of_parts_keeps_them_with_their_labels(tmp_path: Path) -> None:
    for part, n in (("train", 6), ("test", 3), ("val", 2)):
        for index in range(n):
            path = tmp_path / part / ("b" if index % 2 else "a") / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4), index, np.uint8)).save(path)
    dataset = data.read(tmp_path)
    assert dataset.train[:, 0, 0, 0].tolist() == [0, 2, 4, 1, 3, 5]
    assert dataset.test[:, 0, 0, 0].tolist() == [0, 2, 1]
    assert dataset.validation[:, 0, 0, 0].tolist() == [0, 1]
    labels = (dataset.train_labels, dataset.test_labels, dataset.validation_labels)
    assert [part.tolist() for part in labels if part is not None] == [[0, 0, 0, 1, 1, 1], [0, 0, 1], [0, 1]]


def test_a_part_of_which_nothing_can_be_read_is_refused(tmp_path: Path) -> None:
    for part, n in (("train", 120), ("test", 1)):
        (tmp_path / part).mkdir()
        for index in range(n):
            grey(4, 4).save(tmp_path / part / f"{index}.png")
    (tmp_path / "test" / "0.png").write_bytes(b"hello")
    with pytest.raises(BadData, match="got 120 pictures to train on and 0 to test with"):
        data.read(tmp_path)


def test_what_was_skipped_is_counted_and_named(tmp_path: Path) -> None:
    for index in range(100):
        grey(4, 4).save(tmp_path / f"{index:03}.png")
    (tmp_path / "042.png").write_bytes(b"hello")
    dataset = data.read(tmp_path)
    assert len(dataset.train) + len(dataset.test) == 99
    assert dataset.n_skipped == 1
    assert dataset.skipped == (
        "042.png: got something else, expected a picture in one of PNG, JPEG, WEBP, BMP, GIF, TIFF",
    )
