"""Encoded pictures to rows of one size, as the service fits them: upright, on black, in its colours, cover-cropped."""

import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import IO, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from model.errors import BadData
from model.parts import Images, Part, Parts

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
# Modes that Pillow converts to one other only.
_STEPPING_STONES = {"LAB": "RGB", "La": "LA"}
# Where an orientation may stand. Asking a PNG whose header has none would decode it all, to look behind its pixels.
_ORIENTATIONS = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})

# Pillow decodes and scales outside the interpreter's lock. Of the largest pictures so many take some gigabytes.
_THREADS = min(8, os.cpu_count() or 1)
# Files that a thread reads before it hands on: one small picture takes less time than handing on.
_FILES_A_TURN = 16

# Such a picture takes 0.7 GB with its alpha. Pillow refuses what is larger by its own default.
MAX_PIXELS = 178_956_970
MAX_BROKEN_SHARE = 0.01
MAX_NAMED = 20


@dataclass(frozen=True)
class PictureFile:
    """An encoded picture that nobody has opened yet."""

    name: str  # how a person finds it in its source
    label: int | None
    open: Callable[[], IO[bytes]]


PictureFiles = Mapping[str, Sequence[PictureFile]]  # by the names of the parts

_Read = TypeVar("_Read")


class Skipped:
    """The pictures that could not be read: how many, and the first of them by name."""

    def __init__(self, source: str, *, n_files: int) -> None:
        self.n = 0
        self.named: list[str] = []
        self._source = source
        self._n_files = n_files

    def add(self, file: PictureFile, reason: BadData) -> None:
        """Count one more.

        Raises:  BadData once they are too many
        """
        self.n += 1
        if len(self.named) < MAX_NAMED:
            self.named.append(f"{file.name}: {reason}")
        n_allowed = int(self._n_files * MAX_BROKEN_SHARE)
        if self.n > n_allowed:
            raise BadData(
                f"{self._source}: got {self.n} broken of {self._n_files} pictures and stopped there,"
                f" expected at most {n_allowed} ({MAX_BROKEN_SHARE:.0%}); {'; '.join(self.named[:5])}"
            )


def fit(
    source: str, files: PictureFiles, *, size: tuple[int, int] | None, channels: int | None
) -> tuple[Parts, Skipped]:
    """All pictures that can be read, brought to one size (h, w) and 1 or 3 channels; those skipped.

    Without a size, the one that they all share by their headers; without channels, 1 if all are grey, else 3.

    Raises:  BadData if pictures have several sizes and none is given, or if more than 1 % of them are broken
    """
    skipped = Skipped(source, n_files=sum(map(len, files.values())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow warns from half of MAX_PIXELS on
        if size is None or channels is None:
            looks = {part: list(_looks(part_files, skipped)) for part, part_files in files.items()}
            own_size, own_channels = _agreed(source, [look for part in looks.values() for _, look in part], size=size)
            size, channels = size or own_size, channels or own_channels
            files = {part: [file for file, _ in found] for part, found in looks.items()}
        if min(size) < 1 or channels not in (1, 3):
            raise BadData(f"got size {size} and {channels} channels, expected sides from 1 and 1 or 3 channels")
        parts = {
            part: _fit_part(part_files, size=size, channels=channels, skipped=skipped)
            for part, part_files in files.items()
        }
    return parts, skipped


def _fit_part(files: Sequence[PictureFile], *, size: tuple[int, int], channels: int, skipped: Skipped) -> Part:
    shape = (len(files), *size, channels)
    try:
        images = np.empty(shape, np.uint8)
    except (MemoryError, ValueError) as error:  # the latter beyond any address
        got = f"{len(files)} pictures of {size[0]}x{size[1]}, {math.prod(shape) / 2**30:,.0f} GiB"
        raise BadData(f"got {got}, expected what fits into memory; --size HxW makes them smaller") from error

    def read(row: int, file: PictureFile) -> None:
        images[row] = _fitted(file, size=size, channels=channels)

    labels: list[int | None] = []
    with closing(_each(files, read)) as outcomes:
        bar = tqdm(outcomes, "reading", total=len(files), unit=" pictures", disable=None)
        for row, (file, reason) in enumerate(bar):
            if isinstance(reason, BadData):
                skipped.add(file, reason)
            else:
                if row > len(labels):  # no row is left empty for a picture that was skipped
                    images[len(labels)] = images[row]
                labels.append(file.label)
    known = [label for label in labels if label is not None]
    return Part(images[: len(labels)], np.array(known, np.int64) if known and len(known) == len(labels) else None)


@dataclass(frozen=True)
class _Look:
    """What a header tells: size (h, w) of the upright picture, and whether it is grey."""

    size: tuple[int, int]
    is_grey: bool


def _looks(files: Sequence[PictureFile], skipped: Skipped) -> Iterator[tuple[PictureFile, _Look]]:
    with closing(_each(files, _look)) as outcomes:
        for file, look in outcomes:
            if isinstance(look, BadData):
                skipped.add(file, look)
            else:
                yield file, look


def _look(_: int, file: PictureFile) -> _Look:
    with _reading(file) as picture:
        may_turn = picture.format in ("TIFF", "MPO") or not _ORIENTATIONS.isdisjoint(picture.info)
        turned = may_turn and picture.getexif().get(0x0112) in (5, 6, 7, 8)  # orientations on their side
        size = picture.size if turned else picture.size[::-1]
        return _Look(size, is_grey=picture.mode in ("1", "L", "LA", "I;16", "I;16B", "I;16L"))


def _each(
    files: Sequence[PictureFile], read: Callable[[int, PictureFile], _Read]
) -> Generator[tuple[PictureFile, _Read | BadData]]:
    """What is read of each file, or why it cannot be, in their order; several threads read ahead until it is closed."""

    def read_some(start: int) -> list[_Read | BadData]:
        found: list[_Read | BadData] = []
        for row, file in enumerate(files[start : start + _FILES_A_TURN], start):
            try:
                found.append(read(row, file))
            except BadData as reason:
                found.append(reason)
        return found

    starts = range(0, len(files), _FILES_A_TURN)
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="reading")
    try:
        for start, found in zip(starts, threads.map(read_some, starts), strict=True):
            yield from zip(files[start : start + _FILES_A_TURN], found, strict=True)
    finally:
        threads.shutdown(cancel_futures=True)  # or else all files would be read, whatever ended this


def _agreed(source: str, looks: Sequence[_Look], *, size: tuple[int, int] | None) -> tuple[tuple[int, int], int]:
    sizes = Counter(look.size for look in looks)
    (height, width), count = sizes.most_common(1)[0]
    if size is None and len(sizes) > 1:
        raise BadData(
            f"{source}: got pictures of {len(sizes)} sizes, {count} of {len(looks)} being {height}x{width};"
            " expected one size, or --size HxW to fit them to"
        )
    return (height, width), 1 if all(look.is_grey for look in looks) else 3


def _fitted(file: PictureFile, *, size: tuple[int, int], channels: int) -> Images:
    """One picture as the service would hand it to the model.

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
            raise BadData(f"got a picture of mode {picture.mode}, expected at most 16 bits a channel")
        if picture.has_transparency_data:
            colour = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", colour.size, (0, 0, 0, 255)), colour)
        picture = picture.convert("L" if channels == 1 else "RGB")
        return np.asarray(covering(picture, height=height, width=width)).reshape(height, width, channels)


def covering(picture: Image.Image, *, height: int, width: int) -> Image.Image:
    """A picture scaled to cover a size and cropped at the centre; as it is, where it has that size."""
    if picture.size == (width, height):
        return picture
    return ImageOps.fit(picture, (width, height), method=Image.Resampling.LANCZOS)


@contextmanager
def _reading(file: PictureFile) -> Iterator[Image.Image]:
    """A picture whose header has been read, closed in the end.

    Raises:  BadData for whatever goes wrong while it is open
    """
    try:
        with file.open() as content, Image.open(content, formats=_FORMATS) as picture:
            _check_pixels(picture)
            yield picture
    except BadData:
        raise
    except UnidentifiedImageError as error:  # its own message is an address in memory
        raise BadData(f"got something else, expected a picture in one of {', '.join(_FORMATS)}") from error
    except Exception as error:  # Pillow's readers raise whatever a broken file makes them trip over
        raise BadData(f"got {error}, expected a whole picture in one of {', '.join(_FORMATS)}") from error


def _check_pixels(picture: Image.Image) -> None:
    n_pixels = picture.width * picture.height
    if n_pixels > MAX_PIXELS:
        raise BadData(f"got {n_pixels} pixels, expected at most {MAX_PIXELS}")
