"""Pictures that are arrays already: scikit-learn's digits, IDX folders and npz files, taken as they are."""

import gzip
import lzma
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.errors import BadData
from model.parts import Labels, Part, Parts


def digits() -> Parts:
    """scikit-learn's digits, 8×8, at full contrast."""
    from sklearn.datasets import load_digits  # takes a second to import, and most runs never need it

    found = load_digits()
    images = np.round(found.images[..., None] * (255 / 16)).astype(np.uint8)
    return {"train": Part(images, found.target.astype(np.int64))}


# IDX: http://yann.lecun.com/exdb/mnist, section "file formats".


def is_idx(folder: Path) -> bool:
    """Whether the folder is laid out as MNIST is."""
    return (folder / "train-images-idx3-ubyte.gz").is_file()


def idx(folder: Path) -> Parts:
    """The train and test part of MNIST's layout.

    Raises:  BadData with got and expected
    """
    train = _idx(folder / "train-images-idx3-ubyte.gz", n_axes=3)[..., None]
    test = _idx(folder / "t10k-images-idx3-ubyte.gz", n_axes=3)[..., None]
    if train.shape[1:] != test.shape[1:]:
        raise BadData(f"{folder}: got test pictures of shape {test.shape[1:]}, expected {train.shape[1:]} as in train")
    return {
        "train": Part(train, _idx_labels(folder / "train-labels-idx1-ubyte.gz", n=len(train))),
        "test": Part(test, _idx_labels(folder / "t10k-labels-idx1-ubyte.gz", n=len(test))),
    }


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


@dataclass(frozen=True)
class _Header:
    """What an array in an .npz is, before it is read."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} of shape {self.shape}"

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one picture (h, w, c), if it is pictures."""
        return self.shape[1:] if len(self.shape) == 4 else (*self.shape[1:], 1)


def npz(path: Path) -> Parts:
    """The arrays of an .npz that are pictures, and their labels; others are not read.

    Raises:  BadData with got and expected
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _npz_parts(path, archive)
    except BadData:
        raise
    # Of an encrypted member zipfile raises RuntimeError.
    except (
        OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError
    ) as error:  # fmt: skip
        raise BadData(f"{path}: got something else, expected an .npz file without pickled objects ({error})") from error


def _npz_parts(path: Path, archive: zipfile.ZipFile) -> Parts:
    members = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    headers = {name: _header(archive, name) for name in members}

    def part(name: str, label_names: Sequence[str]) -> Part:
        images = _npz_array(path, archive, name, headers[name])
        return Part(images if images.ndim == 4 else images[..., None], labels(label_names, n=len(images)))

    def labels(names: Sequence[str], *, n: int) -> Labels | None:
        name = next((name for name in names if name in headers), None)
        if name is None:
            return None
        header = headers[name]
        if math.prod(header.shape) != n or header.dtype.kind not in "iu":
            raise BadData(f"{path}, {name}: got {header}, expected {n} whole numbers")
        return _npz_array(path, archive, name, header).reshape(n).astype(np.int64)

    name = _images_name(path, headers)
    _require_images(path, name, headers[name])
    if "x_test" not in headers:
        return {"train": part(name, ("labels", "y_train"))}
    _require_images(path, "x_test", headers["x_test"])
    expected = headers[name].image_shape
    if headers["x_test"].image_shape != expected:
        got = (headers["x_test"].shape[0], *headers["x_test"].image_shape)
        raise BadData(f"{path}: got x_test of shape {got}, expected (n, {', '.join(map(str, expected))})")
    return {"train": part(name, ("labels", "y_train")), "test": part("x_test", ("y_test",))}


def _header(archive: zipfile.ZipFile, name: str) -> _Header:
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        # The third version is the second one with names of fields in another encoding.
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        return _Header(dtype, shape)


def _npz_array(path: Path, archive: zipfile.ZipFile, name: str, header: _Header) -> npt.NDArray[Any]:
    try:
        with archive.open(f"{name}.npy") as file:
            array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except MemoryError as error:  # a header may claim an array that no memory holds
        size_gib = math.prod(header.shape) * header.dtype.itemsize / 2**30
        raise BadData(f"{path}, {name}: got {header}, {size_gib:,.0f} GiB, expected what fits into memory") from error
    return array


def _images_name(path: Path, headers: Mapping[str, _Header]) -> str:
    for name in ("images", "x_train"):
        if name in headers:
            return name
    candidates = [name for name, found in headers.items() if found.dtype == np.uint8 and len(found.shape) in (3, 4)]
    if len(candidates) != 1:
        found = ", ".join(f"{name} {header.dtype}{list(header.shape)}" for name, header in headers.items()) or "nothing"
        raise BadData(f"{path}: got {found}, expected an array `images`, `x_train`, or one uint8 array of pictures")
    return candidates[0]


def _require_images(path: Path, name: str, header: _Header) -> None:
    if header.dtype != np.uint8 or len(header.shape) not in (3, 4) or 0 in header.shape:
        raise BadData(f"{path}, {name}: got {header}, expected uint8 of shape (n, h, w) or (n, h, w, c)")
