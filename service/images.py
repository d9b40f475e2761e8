"""Pictures come in: encoded bytes of any of six formats become the uint8 rows that a model takes."""

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from io import BytesIO
from math import ceil, inf, prod
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

# Imported by name, so that Pillow opens these formats and never goes looking for its others.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageOps,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from service import picture_headers, png
from service.errors import BadBody, OutOfMemory, found_at, invalid, too_large

T = TypeVar("T")
Uint8 = NDArray[np.uint8]
Opened = Image.Image | png.Plain

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp", "image/bmp", "image/gif", "image/tiff")

# Where an orientation may stand: in these formats always, in the others under these keys.
_ALWAYS_ORIENTED = frozenset({"TIFF", "MPO"})
_ORIENTATIONS = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})

# What a file need not say at its beginning.
_UNTOLD_PIXELS = 1_000_000

# Modes that Pillow converts to one other only.
_STEPPING_STONES = {"LAB": "RGB", "La": "LA"}

# What Pillow may hold of a PNG's comments, which come inflated.
PngImagePlugin.MAX_TEXT_MEMORY = 2**22

# A field of it that Pillow asks for becomes an object for each of its numbers.
_MOST_EXIF_BYTES = 2**20

# Of a picture with transparency, so many at a time: Pillow keeps the interpreter to itself while it composes them.
_BAND_PIXELS = 2**20

# Of what is odd about a file, and would fill the log with words that the client chose.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Size(NamedTuple):
    """The size that pictures are to have, and the place of the one that has it."""

    shape: tuple[int, ...]
    where: str


class Look(NamedTuple):
    """What is known of a picture before it is opened: itself, where it is a plain PNG, and its pixels, 0 where its file
    does not say so at once.
    """

    plain: png.Plain | None
    pixels: int


def look(data: bytes, *, where: str, max_pixels: int) -> Look:
    """What a file tells by its headers, wherever in it they stand.

    Raises:  BadBody if it is more work than its pixels are; TooLarge if it has more than max_pixels
    """
    plain = png.read(data)
    if plain is None:
        return Look(None, picture_headers.pixels(data, where=where, max_pixels=max_pixels))
    if plain.width * plain.height > max_pixels:
        raise too_large(where, got=plain.width * plain.height, limit=max_pixels, unit="pixels")
    return Look(plain, plain.width * plain.height)


def open_as(found: Look, data: bytes, *, where: str, max_pixels: int) -> Opened:
    """A picture that was looked at, with its header read.

    Raises:  BadBody if it is none of FORMATS, or not what `look` saw; TooLarge if it has more than max_pixels;
             OutOfMemory
    """
    if found.plain is not None:
        return found.plain
    picture = _opened_by_pillow(data, where=where, max_pixels=max_pixels)
    expected = max(found.pixels, _UNTOLD_PIXELS)
    if picture.width * picture.height > expected:  # as of a frame that is larger than its screen
        got = f"a picture of {picture.width * picture.height} pixels"
        raise found_at(where, BadBody, got=got, expected=f"{found.pixels}, as its file says")
    return picture


def _opened_by_pillow(data: bytes, *, where: str, max_pixels: int) -> Image.Image:
    """A picture, in the memory that its bytes and max_pixels justify: some readers make room for pixels at once."""
    Image.MAX_IMAGE_PIXELS = ceil(max_pixels / 2)  # from twice that on, Pillow raises
    try:
        picture = Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        told = re.search(r"\d+", str(error))  # of a frame, which may be larger than the picture
        raise too_large(where, got=int(told[0]) if told else max_pixels + 1, limit=max_pixels, unit="pixels") from error
    except MemoryError as error:
        raise _out_of_memory(where) from error
    except Exception as error:  # Pillow's readers raise whatever a broken file makes them trip over
        expected = f"one in {', '.join(FORMATS)}"
        raise found_at(where, BadBody, got="no picture", expected=expected) from error
    if picture.width * picture.height > max_pixels:  # which a file may tell otherwise than at its beginning
        raise too_large(where, got=picture.width * picture.height, limit=max_pixels, unit="pixels")
    if len(picture.info.get("exif", b"")) > _MOST_EXIF_BYTES:
        got = f"{len(picture.info['exif'])} bytes of EXIF"
        raise found_at(where, BadBody, got=got, expected=f"at most {_MOST_EXIF_BYTES}")
    return picture


def _out_of_memory(where: str) -> OutOfMemory:
    return OutOfMemory(f"{where}: there is no memory for the picture now")


def to_rows(pictures: Iterable[Opened], *, shape: tuple[int, int, int], where: Sequence[str]) -> Uint8:
    """Pictures of any size, mode and orientation as rows that a model of one size takes. None is held while the next
    one is made.

    Shapes:  shape (h, w, c) -> (n, h, w, c)
    Raises:  BadBody if the pixels of one cannot be decoded, Invalid if its mode has no agreed range, OutOfMemory, and
             whatever `pictures` raises
    """
    rows: list[Uint8] = []
    for picture in pictures:
        rows.append(_row(picture, shape, where=where[len(rows)]))
        del picture
    return rows[0][None] if len(rows) == 1 else np.stack(rows)


def _row(picture: Opened, shape: tuple[int, int, int], *, where: str) -> Uint8:
    """A picture as a model of one size takes it; most are what it takes.

    Shapes:  shape (h, w, c) -> (h, w, c)
    """
    if isinstance(picture, png.Plain) and picture.shape == shape:
        return _sound(picture.pixels, where=where)
    height, width, channels = shape
    decoded = _decoded(picture, channels, where=where)
    if decoded.size != (width, height):
        decoded = ImageOps.fit(decoded, (width, height), method=Image.Resampling.LANCZOS)
    return _pixels(decoded)


def to_rows_of_their_size(
    pictures: Iterable[Opened], *, channels: int, stride: int, where: Sequence[str], like: Size | None
) -> Uint8:
    """Pictures of one size as rows of that size, their edges cut where a side is no multiple of the stride.

    Shapes:  -> (n, h, w, channels), h and w multiples of the stride
    Raises:  as `to_rows`, and Invalid if a picture is not of the size of `like`, or where that is None of the first
    """
    rows: list[Uint8] = []
    for picture in pictures:
        place = where[len(rows)]
        decoded = _pixels(_decoded(picture, channels, where=place))
        del picture
        top, left = (side % stride // 2 for side in decoded.shape[:2])
        height, width = (side - side % stride for side in decoded.shape[:2])
        row = decoded[top : top + height, left : left + width]
        like = like or Size(row.shape, place)
        if row.shape != like.shape:
            raise invalid(place, got=size_in_words(row.shape), expected=f"{size_in_words(like.shape)} as {like.where}")
        rows.append(row)
    return np.stack(rows)


def size_in_words(shape: tuple[int, ...]) -> str:
    """The size of a picture whose shape begins with its height and its width."""
    return f"height {shape[0]}, width {shape[1]}"


def _decoded(picture: Opened, channels: int, *, where: str) -> Image.Image:
    """A picture upright and of so many channels, in its own size."""
    upright = _sound(picture.decoded if isinstance(picture, png.Plain) else partial(_upright, picture), where=where)
    if upright.mode in {"I", "F"}:
        raise invalid(where, got=f"a picture of mode {upright.mode}", expected="at most 16 bits a channel")
    return _sound(partial(_on_black, upright, "L" if channels == 1 else "RGB"), where=where)


def _sound(decode: Callable[[], T], *, where: str) -> T:
    """What decoding gives.

    Raises:  BadBody if it fails, OutOfMemory
    """
    try:
        return decode()
    except MemoryError as error:
        raise _out_of_memory(where) from error
    except Exception as error:  # as when it is opened
        raise found_at(where, BadBody, got="a broken or incomplete picture", expected="a whole one") from error


def _upright(picture: Image.Image) -> Image.Image:
    """A picture with its pixels, as it is to be looked at, of at most 8 bits a channel where its mode has a range."""
    picture.load()
    if picture.format in _ALWAYS_ORIENTED or not _ORIENTATIONS.isdisjoint(picture.info):
        ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture.convert(_STEPPING_STONES[picture.mode]) if picture.mode in _STEPPING_STONES else picture


def _on_black(picture: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """A picture in one of these modes, where it is transparent on black."""
    if not picture.has_transparency_data:
        return picture if picture.mode == mode else picture.convert(mode)
    composed = Image.new(mode, picture.size)
    height = max(_BAND_PIXELS // picture.width, 1)
    for top in range(0, picture.height, height):
        below = min(top + height, picture.height)
        band = picture.crop((0, top, picture.width, below)).convert("RGBA")
        band = Image.alpha_composite(Image.new("RGBA", band.size, (0, 0, 0, 255)), band)
        composed.paste(band.convert(mode), (0, top))
    return composed


def _pixels(picture: Image.Image) -> Uint8:
    """The pixels of a picture of mode L or RGB.

    Shapes:  -> (h, w, c)
    """
    return np.frombuffer(picture.tobytes(), np.uint8).reshape(picture.height, picture.width, -1)


def looking_cost_us(n: int, *, n_bytes: int) -> float:
    """What `look` will cost for n pictures, with room for what long files may hold before their pixels."""
    return 30 * n + 0.005 * n_bytes


def decoding_cost_us(picture: png.Plain | None, *, n_bytes: int, shape: tuple[int, ...] | None) -> float:
    """What a picture will cost of `to_rows`, with room for a conversion and for what a long file may hold after its
    pixels; what Pillow alone can read, None here, may cost anything.

    Shapes:  shape (h, w, c) of the row, None where it has the picture's size
    """
    if picture is None:
        return inf
    cost_us = 15 + 0.01 * picture.width * picture.height * len(picture.mode) + 0.002 * n_bytes
    return cost_us if shape is None or shape == picture.shape else cost_us + 20 + 0.02 * prod(shape)
