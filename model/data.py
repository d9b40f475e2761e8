"""Files to pictures: folders of pictures, IDX folders and npz files become arrays of one size, train and test."""

import gzip
import hashlib
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from tqdm import tqdm

from model.errors import BadData

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Modes that Pillow converts to one other only.
_STEPPING_STONES = {"LAB": "RGB", "La": "LA"}
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_TEST_SHARE = 0.1
# The split belongs to the data and not to a run, so that runs of any seed are measured on the same pictures.
_SPLIT_SEED = 0


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pictures of one size, in two parts.

    Shapes:  train, test (n, h, w, c) uint8; labels (n,) where the files had any
    """

    name: str
    train: Images
    test: Images
    train_labels: Labels | None = None
    test_labels: Labels | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one picture: (h, w, c)."""
        height, width, channels = self.train.shape[1:]
        return height, width, channels

    @cached_property
    def sha256(self) -> str:
        """Hash of all pictures, train before test, and of their shapes."""
        digest = hashlib.sha256(repr((self.train.shape, self.test.shape)).encode())
        for images in (self.train, self.test):
            digest.update(np.ascontiguousarray(images).data)
        return digest.hexdigest()


def read(path: Path | None, *, size: tuple[int, int] | None = None, channels: int | None = None) -> Dataset:
    """All pictures under a path; without one, scikit-learn's digits.

    A folder with `train-images-idx3-ubyte.gz` is IDX, any other folder is pictures, a file is npz. Pictures are
    brought to size (h, w) and channels; arrays have theirs already.

    Raises:  BadData with got and expected
    """
    if path is None:
        dataset = _read_digits()
    elif path.is_dir():
        is_idx = (path / "train-images-idx3-ubyte.gz").is_file()
        dataset = _read_idx(path) if is_idx else _read_folder(path, size=size, channels=channels)
    elif path.is_file():
        dataset = _read_npz(path)
    else:
        raise BadData(f"{path}: got nothing there, expected a folder of pictures, a folder of IDX files or an .npz")
    height, width, depth = dataset.image_shape
    if depth not in (1, 3):
        raise BadData(f"{dataset.name}: got pictures of {depth} channels, expected 1 (grey) or 3 (RGB)")
    if (size or (height, width)) != (height, width) or (channels or depth) != depth:
        expected = (*(size or (height, width)), channels or depth)
        raise BadData(f"{dataset.name}: got pictures of shape {(height, width, depth)}, expected {expected}")
    return dataset


def _read_digits() -> Dataset:
    from sklearn.datasets import load_digits  # takes a second to import, and most runs never need it

    digits = load_digits()
    images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    return _split("digits", images, digits.target.astype(np.int64))


def _split(name: str, images: Images, labels: Labels | None) -> Dataset:
    n = len(images)
    if n < 2:
        raise BadData(f"{name}: got {n} pictures, expected at least 2, one to train on and one to test with")
    order = np.random.default_rng(_SPLIT_SEED).permutation(n)
    n_test = math.ceil(n * _TEST_SHARE)
    test, train = np.sort(order[:n_test]), np.sort(order[n_test:])
    return Dataset(
        name=name,
        train=images[train],
        test=images[test],
        train_labels=None if labels is None else labels[train],
        test_labels=None if labels is None else labels[test],
    )


# IDX: http://yann.lecun.com/exdb/mnist, section "file formats".


def _read_idx(folder: Path) -> Dataset:
    train = _idx(folder / "train-images-idx3-ubyte.gz", n_axes=3)[..., None]
    test = _idx(folder / "t10k-images-idx3-ubyte.gz", n_axes=3)[..., None]
    if train.shape[1:] != test.shape[1:]:
        raise BadData(f"{folder}: got test pictures of shape {test.shape[1:]}, expected {train.shape[1:]} as in train")
    return Dataset(
        name=folder.resolve().name,
        train=train,
        test=test,
        train_labels=_idx_labels(folder / "train-labels-idx1-ubyte.gz", n=len(train)),
        test_labels=_idx_labels(folder / "t10k-labels-idx1-ubyte.gz", n=len(test)),
    )


def _idx_labels(path: Path, *, n: int) -> Labels | None:
    if not path.is_file():
        return None
    labels = _idx(path, n_axes=1)
    if len(labels) != n:
        raise BadData(f"{path}: got {len(labels)} labels, expected {n}, one per picture")
    return labels.astype(np.int64)


def _idx(path: Path, *, n_axes: int) -> npt.NDArray[np.uint8]:
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise BadData(f"{path}: got no such file, expected it beside the other IDX files") from error
    except (OSError, EOFError, zlib.error) as error:
        raise BadData(f"{path}: got something else, expected a whole gzip file ({error})") from error
    start = 4 + 4 * n_axes
    expected = bytes([0, 0, 8, n_axes])
    if content[:4] != expected:
        raise BadData(f"{path}: got header {content[:4].hex()}, expected {expected.hex()}, uint8 of {n_axes} axes")
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4))
    if len(content) != start + math.prod(shape) or 0 in shape:
        raise BadData(f"{path}: got {len(content) - start} values, expected {shape} as the header says")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()  # bytes are read-only, torch minds


def _read_npz(path: Path) -> Dataset:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.namelist() if member.endswith(".npy")]
            arrays = {}
            for member in members:
                with archive.open(member) as file:
                    arrays[member.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise BadData(f"{path}: got something else, expected an .npz file without pickled objects ({error})") from error
    name = _images_name(path, arrays)
    images = _image_array(path, name, arrays[name])
    labels = _npz_labels(path, arrays, ("labels", "y_train"), n=len(images))
    if name != "x_train" or "x_test" not in arrays:
        return _split(path.stem, images, labels)
    test = _image_array(path, "x_test", arrays["x_test"])
    if test.shape[1:] != images.shape[1:]:
        raise BadData(
            f"{path}: got x_test of shape {test.shape}, expected (n, {', '.join(map(str, images.shape[1:]))})"
        )
    return Dataset(
        name=path.stem,
        train=images,
        test=test,
        train_labels=labels,
        test_labels=_npz_labels(path, arrays, ("y_test",), n=len(test)),
    )


def _images_name(path: Path, arrays: dict[str, npt.NDArray[np.generic]]) -> str:
    for name in ("images", "x_train"):
        if name in arrays:
            return name
    candidates = [name for name, array in arrays.items() if array.dtype == np.uint8 and array.ndim in (3, 4)]
    if len(candidates) != 1:
        found = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items()) or "nothing"
        raise BadData(f"{path}: got {found}, expected an array `images`, `x_train`, or one uint8 array of pictures")
    return candidates[0]


def _image_array(path: Path, name: str, array: npt.NDArray[np.generic]) -> Images:
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or 0 in array.shape:
        got = f"{array.dtype} of shape {array.shape}"
        raise BadData(f"{path}, {name}: got {got}, expected uint8 of shape (n, h, w) or (n, h, w, c)")
    images = array.astype(np.uint8, copy=False)
    return images if images.ndim == 4 else images[..., None]


def _npz_labels(
    path: Path, arrays: dict[str, npt.NDArray[np.generic]], names: Sequence[str], *, n: int
) -> Labels | None:
    name = next((name for name in names if name in arrays), None)
    if name is None:
        return None
    labels = arrays[name]
    if labels.size != n or labels.dtype.kind not in "iu":
        raise BadData(f"{path}, {name}: got {labels.dtype} of shape {labels.shape}, expected {n} whole numbers")
    return labels.reshape(n).astype(np.int64)


def _read_folder(folder: Path, *, size: tuple[int, int] | None, channels: int | None) -> Dataset:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise BadData(f"{folder}: got no pictures, expected files named {', '.join('*' + s for s in SUFFIXES)}")
    if size is None or channels is None:
        own_size, own_channels = _survey(folder, files, size=size)
        size, channels = size or own_size, channels or own_channels
    if min(size) < 1 or channels not in (1, 3):
        raise BadData(f"got size {size} and {channels} channels, expected sides from 1 and 1 or 3 channels")
    images = np.empty((len(files), *size, channels), np.uint8)
    for row, file in zip(images, tqdm(files, "reading", unit=" pictures", disable=None), strict=True):
        row[...] = _fitted(file, size=size, channels=channels)
    return _split(folder.resolve().name, images, None)


def _survey(folder: Path, files: Sequence[Path], *, size: tuple[int, int] | None) -> tuple[tuple[int, int], int]:
    """Size (h, w) that all pictures share, and 1 channel if all are grey, else 3; reads headers only."""
    sizes: Counter[tuple[int, int]] = Counter()
    is_grey = True
    for file in files:
        with _reading(file) as picture:
            # Asking a PNG whose header has no EXIF would decode it all, to look behind its pixels.
            has_exif = "exif" in picture.info or picture.format in ("TIFF", "MPO")
            turned = has_exif and picture.getexif().get(0x0112) in (5, 6, 7, 8)  # orientations on their side
            sizes[picture.size if turned else picture.size[::-1]] += 1
            is_grey = is_grey and picture.mode in ("1", "L", "LA", "I;16", "I;16B", "I;16L")
    (height, width), count = sizes.most_common(1)[0]
    if size is None and len(sizes) > 1:
        raise BadData(
            f"{folder}: got pictures of {len(sizes)} sizes, {count} of {len(files)} being {height}x{width};"
            " expected one size, or --size HxW to fit them to"
        )
    return (height, width), 1 if is_grey else 3


def _fitted(file: Path, *, size: tuple[int, int], channels: int) -> Images:
    """One picture as the service would hand it to the model: upright, on black, in its colours, cover-cropped.

    Shapes:  -> (h, w, c)
    """
    height, width = size
    with _reading(file) as opened:
        picture = ImageOps.exif_transpose(opened)
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in _STEPPING_STONES:
        picture = picture.convert(_STEPPING_STONES[picture.mode])
    if picture.mode in ("I", "F"):
        raise BadData(f"{file}: got a picture of mode {picture.mode}, expected at most 16 bits a channel")
    if picture.has_transparency_data:
        colour = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", colour.size, (0, 0, 0, 255)), colour)
    picture = picture.convert("L" if channels == 1 else "RGB")
    if picture.size != (width, height):
        picture = ImageOps.fit(picture, (width, height), method=Image.Resampling.LANCZOS)
    return np.asarray(picture).reshape(height, width, channels)


@contextmanager
def _reading(file: Path) -> Iterator[Image.Image]:
    """A picture whose header has been read, closed in the end.

    Raises:  BadData for whatever goes wrong while it is open
    """
    try:
        with Image.open(file, formats=_FORMATS) as picture:
            yield picture
    except Exception as error:  # Pillow's readers raise whatever a broken file makes them trip over
        raise BadData(f"{file}: got {error}, expected a whole picture in one of {', '.join(_FORMATS)}") from error
