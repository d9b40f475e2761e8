"""A data set: pictures of one size in three parts, read from whatever holds them."""

import hashlib
import math
import zipfile
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from model import fitting
from model.errors import BadData, OtherShape
from model.fitting import SUFFIXES, PictureFiles
from model.parts import Images, Labels, Part, Parts, all_over, rows_at_once
from model.sources import arrays, folders, hub

# What is read where no path is given.
DIGITS = "digits"

_TEST_SHARE = 0.1
_FILES = {".zip", ".npz", ".parquet"}
# The split belongs to the data and not to a run, so that runs of any seed are measured on the same pictures.
_SPLIT_SEED = 0
_MOVED_ROWS = 4096


def _no_pictures() -> Images:
    return np.empty((0, 1, 1, 1), np.uint8)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pictures of one size, in three parts; the validation part may be empty.

    Shapes:  train, test, validation (n, h, w, c) uint8; labels (n,) where the source had any
    """

    name: str
    train: Images
    test: Images
    train_labels: Labels | None = None
    test_labels: Labels | None = None
    validation: Images = field(default_factory=_no_pictures)
    validation_labels: Labels | None = None
    is_validation_drawn: bool = False  # from the training pictures, and no part of the source
    skipped: tuple[str, ...] = ()  # the first pictures that could not be read: name and reason
    n_skipped: int = 0  # how many there were

    def __post_init__(self) -> None:
        """An empty part has the pictures' shape, as every other part."""
        if not len(self.validation):
            object.__setattr__(self, "validation", self.train[:0])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one picture: (h, w, c)."""
        height, width, channels = self.train.shape[1:]
        return height, width, channels

    @cached_property
    def sha256(self) -> str:
        """Hash of all pictures and of their shapes: train, test, then validation if there is one."""
        parts = [self.train, self.test, *([self.validation] if len(self.validation) else [])]
        digest = hashlib.sha256(repr(tuple(images.shape for images in parts)).encode())
        for images in parts:
            digest.update(np.ascontiguousarray(images).data)
        return digest.hexdigest()

    @cached_property
    def labels_sha256(self) -> str | None:
        """Hash of the labels of train and test, None where not all of them have one."""
        if self.train_labels is None or self.test_labels is None:
            return None
        return hashlib.sha256(self.train_labels.tobytes() + self.test_labels.tobytes()).hexdigest()


def read(
    path: Path | str | None,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    most: int | None = None,
) -> Dataset:
    """All pictures under a path or at `hf:owner/name`; without one, scikit-learn's digits.

    Encoded pictures are brought to size (h, w) and channels, of each of the source's parts `most` of them at most, from
    all over it; arrays have theirs already. A test part is taken out of the pictures where the source has none.

    Raises:  OtherShape if arrays have another size or other channels; BadData with got and expected
    """
    if path is None:
        return _checked(_dataset(DIGITS, arrays.digits()), size=size, channels=channels)
    if str(path).startswith(hub.PREFIX):
        name = str(path).removeprefix(hub.PREFIX)
        return _fitted(name, hub.on_hub(str(path)), size=size, channels=channels, most=most)
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, size=size, channels=channels, most=most)
    expected = "a folder or zip of pictures, a folder of IDX files, an .npz, a .parquet, or hf:owner/name"
    if not path.is_file():
        raise BadData(f"{path}: got nothing there, expected {expected}")
    if path.suffix.lower() not in _FILES:
        raise BadData(f"{path}: got a file of another kind, expected {expected}")
    if path.suffix.lower() == ".zip":
        return _read_zip(path, size=size, channels=channels, most=most)
    if path.suffix.lower() == ".parquet":
        return _fitted(path.stem, hub.in_parquet(path), size=size, channels=channels, most=most)
    return _checked(_dataset(path.stem, arrays.npz(path)), size=size, channels=channels)


def with_validation(dataset: Dataset, n: int, *, seed: int) -> Dataset:
    """The data set with n pictures moved from train to validation, drawn by the seed; its own validation part is kept.

    It takes the memory of the one given over, which is used up by that: of large data there is no room for another.

    Raises:  BadData if fewer than one picture would be left to train on
    """
    if n == 0 or len(dataset.validation):
        return dataset
    n_train = len(dataset.train)
    if not 0 < n < n_train:
        raise BadData(f"{dataset.name}: got {n} pictures to validate on, expected fewer than the {n_train} to train on")
    validation, train = _drawn(Part(dataset.train, dataset.train_labels), n, seed=seed)
    return replace(
        dataset,
        train=train.images,
        train_labels=train.labels,
        validation=validation.images,
        validation_labels=validation.labels,
        is_validation_drawn=True,
    )


def _read_folder(folder: Path, *, size: tuple[int, int] | None, channels: int | None, most: int | None) -> Dataset:
    name = folder.resolve().name
    if arrays.is_idx(folder):
        return _checked(_dataset(name, arrays.idx(folder)), size=size, channels=channels)
    files = folders.in_folder(folder)
    if not files and any(folder.rglob("*.parquet")):
        files = hub.in_parquet(folder)
    return _fitted(name, files, size=size, channels=channels, most=most)


def _read_zip(path: Path, *, size: tuple[int, int] | None, channels: int | None, most: int | None) -> Dataset:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError) as error:
        raise BadData(f"{path}: got something else, expected a zip of pictures ({error})") from error
    with archive:
        return _fitted(path.stem, folders.in_zip(archive), size=size, channels=channels, most=most)


def _fitted(
    name: str, files: PictureFiles, *, size: tuple[int, int] | None, channels: int | None, most: int | None
) -> Dataset:
    if not any(files.values()):
        raise BadData(f"{name}: got no pictures, expected files named {', '.join('*' + s for s in SUFFIXES)}")
    if most is not None:
        files = {part: [found[row] for row in all_over(len(found), most=most)] for part, found in files.items()}
    parts, skipped = fitting.fit(name, files, size=size, channels=channels)
    return replace(_dataset(name, parts), skipped=tuple(skipped.named), n_skipped=skipped.n)


def _checked(dataset: Dataset, *, size: tuple[int, int] | None, channels: int | None) -> Dataset:
    """The data set, if its arrays are such pictures already."""
    height, width, depth = dataset.image_shape
    if depth not in (1, 3):
        raise BadData(f"{dataset.name}: got pictures of {depth} channels, expected 1 (grey) or 3 (RGB)")
    if (size or (height, width)) != (height, width) or (channels or depth) != depth:
        expected = (*(size or (height, width)), channels or depth)
        raise OtherShape(f"{dataset.name}: got pictures of shape {(height, width, depth)}, expected {expected}")
    return dataset


def _dataset(name: str, parts: Parts) -> Dataset:
    train, test = (parts["train"], parts["test"]) if "test" in parts else _split(name, parts["train"])
    validation = parts.get("validation", Part(_no_pictures(), None))
    if not len(train) or not len(test):
        raise BadData(f"{name}: got {len(train)} pictures to train on and {len(test)} to test with, expected some")
    return Dataset(
        name=name,
        train=train.images,
        test=test.images,
        train_labels=train.labels,
        test_labels=test.labels,
        validation=validation.images,
        validation_labels=validation.labels,
    )


def _split(name: str, part: Part) -> tuple[Part, Part]:
    n = len(part)
    if n < 2:
        raise BadData(f"{name}: got {n} pictures, expected at least 2, one to train on and one to test with")
    test, train = _drawn(part, math.ceil(n * _TEST_SHARE), seed=_SPLIT_SEED)
    return train, test


def _drawn(part: Part, n: int, *, seed: int) -> tuple[Part, Part]:
    """n pictures drawn from a part, and the others; both in the order that they had.

    The others close up in the memory of the part, which is used up by that.
    """
    order = np.random.default_rng(seed).permutation(len(part))
    others = np.sort(order[n:])
    drawn = part.rows(np.sort(order[:n]))
    at_once = rows_at_once(part.images.shape[1:], most=_MOVED_ROWS)
    for start in range(0, len(others), at_once):  # each row moves down, onto one that has moved before or was drawn
        rows = others[start : start + at_once]
        part.images[start : start + len(rows)] = part.images[rows]
    return drawn, Part(part.images[: len(others)], None if part.labels is None else part.labels[others])
