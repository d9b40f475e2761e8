"""Which files of a folder or zip are pictures, and what their folders say about them."""

import errno
import os
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model import data
from model.errors import BadData
from model.fitting import SUFFIXES
from model.sources import folders

Found = dict[str, list[tuple[str, int | None]]]


def found(folder: Path, *names: str) -> Found:
    """Name and label by part of empty files with these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return {part: [(file.name, file.label) for file in files] for part, files in folders.in_folder(folder).items()}


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def png(value: int) -> bytes:
    file = BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_a_folder_is_read_with_its_subfolders_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for index, suffix in enumerate([*SUFFIXES, ".PNG"]):
        Image.fromarray(np.zeros((9, 6), np.uint8)).save(tmp_path / ("a/b" if index % 2 else "a") / f"{index}{suffix}")
    (tmp_path / "notes.txt").write_text("not a picture")
    dataset = data.read(tmp_path, channels=1)
    assert len(dataset.train) + len(dataset.test) == len(SUFFIXES) + 1
    assert dataset.image_shape == (9, 6, 1)


def test_pictures_stand_in_the_order_of_their_names_and_folders(tmp_path: Path) -> None:
    names = [name for name, _ in found(tmp_path, "b.png", "a/c/1.png", "a-b/1.png", "a/2.png")["train"]]
    assert names == ["a/2.png", "a/c/1.png", "a-b/1.png", "b.png"]


def test_what_a_system_leaves_beside_pictures_is_no_picture(tmp_path: Path) -> None:
    assert found(tmp_path, "a.png", "._a.png", ".thumbnails/a.png", "__MACOSX/a.png") == {"train": [("a.png", None)]}


def test_linked_folders_are_entered_once_each_and_never_back_up(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    found(elsewhere, "1.png", "deep/2.png")
    folder.mkdir()
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "deep" / "back").symlink_to(folder)
    assert found(folder) == {"train": [("linked/1.png", None), ("linked/deep/2.png", None)]}


def test_a_link_to_nowhere_is_a_broken_picture(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for index in range(99):
        (folder / f"{index:02}.png").write_bytes(png(index))
    (folder / "99.png").symlink_to(tmp_path / "gone.png")
    dataset = data.read(folder)
    assert dataset.n_skipped == 1
    assert dataset.skipped[0].startswith("99.png: got [Errno 2] No such file or directory")


def test_a_pipe_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "endless.png")
    assert found(tmp_path, "a.png") == {"train": [("a.png", None)]}


def test_a_folder_that_may_not_be_listed_is_an_error_and_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    listed = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:  # root, as tests may be, can list any
        if path.name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(PermissionError, match="closed"):
        found(tmp_path, "a.png")


def test_folders_of_classes_give_labels_in_alphabetical_order(tmp_path: Path) -> None:
    assert found(tmp_path, "dog/1.png", "cat/1.png", "dog/0.png") == {
        "train": [("cat/1.png", 0), ("dog/0.png", 1), ("dog/1.png", 1)]
    }


@pytest.mark.parametrize(
    "names",
    [
        ("cat/1.png", "dog/1.png", "0.png"),  # one has no class
        ("cat/1.png", "dog/big/1.png"),  # one lies deeper
        ("cat/1.png", "cat/2.png"),  # a lone class tells nothing
        ("2024/may/1.png", "2025/may/1.png"),
    ],
)
def test_other_folders_give_no_labels(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert found(tmp_path, *names) == {"train": [(name, None) for name in sorted(names)]}


def test_a_folder_that_holds_all_others_is_looked_through(tmp_path: Path) -> None:
    assert found(tmp_path, "all/photos/cat/1.png", "all/photos/dog/1.png") == {
        "train": [("all/photos/cat/1.png", 0), ("all/photos/dog/1.png", 1)]
    }


@pytest.mark.parametrize("validation", ["validation", "valid", "val", "Val"])
def test_folders_named_after_parts_are_parts(tmp_path: Path, validation: str) -> None:
    parts = found(tmp_path, "train/b/1.png", "train/a/1.png", "test/b/1.png", f"{validation}/1.png")
    assert parts == {
        "train": [("train/a/1.png", 0), ("train/b/1.png", 1)],
        "test": [("test/b/1.png", 1)],
        "validation": [(f"{validation}/1.png", None)],
    }


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert found(tmp_path, "bus/1.png", "train/1.png") == {"train": [("bus/1.png", 0), ("train/1.png", 1)]}


@pytest.mark.parametrize(
    ("names", "beside"),
    [
        (("train/1.png", "test/1.png", "cover.png"), "cover.png"),
        (("train/1.png", "Test/1.png", "dev/1.png"), "dev"),
        (("train/1.png", "val/1.png", "a/1.png", "b/1.png", "c/1.png", "d.png", "e.png"), "a, b, c and 2 more"),
        (("all/train/1.png", "all/test/1.png", "all/cover.png"), "cover.png"),
    ],
)
def test_pictures_beside_parts_are_refused_so_that_no_test_picture_is_learnt(
    tmp_path: Path, names: tuple[str, ...], beside: str
) -> None:
    with pytest.raises(BadData, match=rf"/\w+: got {beside} beside folders of parts, expected all pictures in folders"):
        found(tmp_path, *names)
    path = zipped(tmp_path / "some.zip", **dict.fromkeys(names, b""))
    with pytest.raises(BadData, match=rf"some\.zip: got {beside} beside folders of parts"):
        data.read(path)


def test_what_is_no_picture_may_lie_beside_parts(tmp_path: Path) -> None:
    parts = found(tmp_path, "train/1.png", "test/1.png", "README.md", ".cover.png", ".cache/1.png", "csv/labels.csv")
    assert parts == {"train": [("train/1.png", None)], "test": [("test/1.png", None)]}


def test_a_lone_train_folder_is_split_and_its_classes_are_labels(tmp_path: Path) -> None:
    assert found(tmp_path, "train/a/1.png", "train/b/1.png") == {"train": [("train/a/1.png", 0), ("train/b/1.png", 1)]}


def test_only_pictures_of_a_zip_are_read(tmp_path: Path) -> None:
    members = {"a.png": png(1), "b.PNG": png(2), "c/": b"", "notes.txt": b"no", "c/d.npy": b"no", "../e.png": png(3)}
    dataset = data.read(zipped(tmp_path / "some.zip", **members))
    assert sorted([*dataset.train[:, 0, 0, 0], *dataset.test[:, 0, 0, 0]]) == [1, 2]


def test_a_picture_that_would_unpack_to_too_much_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "MAX_FILE_BYTES", 10_000)
    path = zipped(tmp_path / "some.zip", **{"a.png": png(1), "bomb.png": png(2) + bytes(100_000)})
    with pytest.raises(BadData, match=r"bomb\.png: got 10\d+ bytes when unpacked, expected at most 10000"):
        data.read(path)


def test_a_damaged_member_of_a_zip_is_a_broken_picture(tmp_path: Path) -> None:
    path = zipped(tmp_path / "some.zip", **{f"{index:03}.png": png(index) for index in range(100)})
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("007.png").header_offset
    content = bytearray(path.read_bytes())
    content[offset + 40] ^= 0xFF
    path.write_bytes(content)
    dataset = data.read(path)
    assert dataset.n_skipped == 1
    assert dataset.skipped[0].startswith("007.png: got ")


def test_a_zip_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="some: got no pictures"):
        data.read(zipped(tmp_path / "some.zip", **{"notes.txt": b"no"}))
