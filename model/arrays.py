"""Pictures that are arrays already: scikit-learn's digits, IDX folders and npz files, taken as they are."""

import gzip
import lzma
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.errors import BadData
from model.parts import Images, Labels, Part, Parts


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


def npz(path: Path) -> Parts:
    """The arrays of an .npz that are pictures, and their labels.

    Raises:  BadData with got and expected
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.namelist() if member.endswith(".npy")]
            arrays = {}
            for member in members:
                with archive.open(member) as file:
                    arrays[member.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    # Of an encrypted member zipfile raises RuntimeError; a header may claim an array that no memory holds.
    except (
        OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error, lzma.LZMAError
    ) as error:  # fmt: skip
        raise BadData(f"{path}: got something else, expected an .npz file without pickled objects ({error})") from error
    name = _images_name(path, arrays)
    images = _image_array(path, name, arrays[name])
    parts = {"train": Part(images, _npz_labels(path, arrays, ("labels", "y_train"), n=len(images)))}
    if "x_test" in arrays:
        test = _image_array(path, "x_test", arrays["x_test"])
        if test.shape[1:] != images.shape[1:]:
            expected = f"(n, {', '.join(map(str, images.shape[1:]))})"
            raise BadData(f"{path}: got x_test of shape {test.shape}, expected {expected}")
        parts["test"] = Part(test, _npz_labels(path, arrays, ("y_test",), n=len(test)))
    return parts


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
