"""Pictures at the edge: encoded bytes to uint8 arrays, and uint8 arrays to PNG, WebP, JPEG, GIF and APNG."""

from collections.abc import Callable, Sequence
from io import BytesIO
from math import ceil, isqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Imported by name, so that Pillow opens these formats and never goes looking for its others.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageOps,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from service.errors import BadBody, invalid, too_large

Uint8 = NDArray[np.uint8]
Encoding = Literal["png", "webp", "jpeg", "gif", "apng"]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MEDIA_TYPES = frozenset({"image/png", "image/jpeg", "image/webp", "image/bmp", "image/gif", "image/tiff"})

# Largest side that each format can state; libjpeg stops a little below its format.
LONGEST_SIDE = {"png": 2**31 - 1, "apng": 2**31 - 1, "webp": 16383, "jpeg": 65500, "gif": 65535}

# Where an orientation may stand: in these formats always, in the others under these keys.
_ALWAYS_ORIENTED = frozenset({"TIFF", "MPO"})
_ORIENTATIONS = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})

# Modes that Pillow converts to one other only.
_STEPPING_STONES = {"LAB": "RGB", "La": "LA"}

# The service has its own bound on pixels, checked on the header before anything is decoded.
Image.MAX_IMAGE_PIXELS = None


def open_picture(data: bytes, *, where: str, max_pixels: int) -> Image.Image:
    """A picture whose header has been read and whose pixels have not.

    Raises:  BadBody if it is none of FORMATS, TooLarge if it has more than max_pixels
    """
    try:
        picture = Image.open(BytesIO(data), formats=FORMATS)
    except Exception as error:  # Pillow's readers raise whatever a broken file makes them trip over
        raise BadBody(f"{where}: not a picture in one of {', '.join(FORMATS)}") from error
    if picture.width * picture.height > max_pixels:
        raise too_large(where, got=picture.width * picture.height, limit=max_pixels, unit="pixels")
    return picture


def to_rows(pictures: Sequence[Image.Image], *, shape: tuple[int, int, int], where: Sequence[str]) -> Uint8:
    """Pictures of any size, mode and orientation as rows that a model of one size takes.

    Shapes:  shape (h, w, c) -> (n, h, w, c)
    Raises:  BadBody if the pixels of one cannot be decoded, Invalid if its mode has no agreed range
    """
    height, width, channels = shape
    rows = np.empty((len(pictures), *shape), np.uint8)
    for row, picture, place in zip(rows, pictures, where, strict=True):
        decoded = _decoded(picture, channels, where=place)
        if decoded.size != (width, height):
            decoded = ImageOps.fit(decoded, (width, height), method=Image.Resampling.LANCZOS)
        row[...] = np.asarray(decoded).reshape(shape)
    return rows


def to_rows_of_their_size(
    pictures: Sequence[Image.Image], *, channels: int, stride: int, where: Sequence[str]
) -> Uint8:
    """Pictures of one size as rows of that size, their edges cut where a side is no multiple of the stride.

    Shapes:  -> (n, h, w, channels), h and w multiples of the stride
    Raises:  as `to_rows`, and Invalid if a picture is not of the first one's size
    """
    rows: list[Uint8] = []
    for picture, place in zip(pictures, where, strict=True):
        decoded = np.asarray(_decoded(picture, channels, where=place))
        top, left = (side % stride // 2 for side in decoded.shape[:2])
        height, width = (side - side % stride for side in decoded.shape[:2])
        row = decoded.reshape(*decoded.shape[:2], channels)[top : top + height, left : left + width]
        if rows and row.shape != rows[0].shape:
            raise invalid(place, got=size_in_words(row.shape), expected=f"{size_in_words(rows[0].shape)} as {where[0]}")
        rows.append(row)
    return np.stack(rows)


def size_in_words(shape: tuple[int, ...]) -> str:
    """The size of a picture whose shape begins with its height and its width."""
    return f"height {shape[0]}, width {shape[1]}"


def _decoded(picture: Image.Image, channels: int, *, where: str) -> Image.Image:
    """A picture upright and of so many channels, in its own size."""
    try:
        picture.load()
        if picture.format in _ALWAYS_ORIENTED or not _ORIENTATIONS.isdisjoint(picture.info):
            ImageOps.exif_transpose(picture, in_place=True)
        if picture.mode.startswith("I;16"):
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        if picture.mode in _STEPPING_STONES:
            picture = picture.convert(_STEPPING_STONES[picture.mode])
    except Exception as error:  # as in open_picture
        raise BadBody(f"{where}: the picture's data is broken or incomplete") from error
    if picture.mode in {"I", "F"}:
        raise invalid(where, got=f"a picture of mode {picture.mode}", expected="at most 16 bits a channel")
    if picture.has_transparency_data:
        colour = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", colour.size, (0, 0, 0, 255)), colour)
    mode = "L" if channels == 1 else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)


def opening_cost_us(n: int) -> float:
    """What `open_picture` costs for n pictures."""
    return 20 * n


def decoding_cost_us(pictures: Sequence[Image.Image]) -> float:
    """What `to_rows` will cost: opening, and decoding with room for a conversion."""
    return sum(30 + 0.012 * picture.width * picture.height for picture in pictures)


def grid(images: Uint8, columns: int) -> Uint8:
    """Pictures side by side, `columns` in a line, black where the last line is not full.

    Shapes:  images (n, h, w, c) -> (lines · h, columns · w, c)
    """
    n, height, width, channels = images.shape
    lines = ceil(n / columns)
    cells = np.zeros((lines * columns, height, width, channels), np.uint8)
    cells[:n] = images
    lined = cells.reshape(lines, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return lined.reshape(lines * height, columns * width, channels)


def near_square(n: int) -> int:
    """Columns of a grid of n pictures that is as wide as high, or wider by one."""
    return isqrt(n - 1) + 1


def enlarge(images: Uint8, scale: int) -> Uint8:
    """Every pixel as scale × scale pixels.

    Shapes:  images (n, h, w, c) -> (n, h · scale, w · scale, c)
    """
    return images if scale == 1 else images.repeat(scale, axis=1).repeat(scale, axis=2)


def render(images: Uint8, encoding: Encoding, *, columns: int, scale: int, quality: int, frame_ms: int) -> bytes:
    """One file that shows all pictures: a grid, or for GIF and APNG one frame after the other.

    Shapes:  images (n, h, w, c)
    Units:   frame_ms milliseconds a frame; quality 1 to 100, read by WebP and JPEG only
    """
    large = enlarge(images, scale)
    if encoding in {"gif", "apng"}:
        return _animation(large, "GIF" if encoding == "gif" else "PNG", frame_ms)
    file = BytesIO()
    _SAVERS[encoding](_picture(grid(large, columns)), file, quality)
    return file.getvalue()


def png(image: Uint8) -> bytes:
    """One picture as PNG.

    Shapes:  image (h, w, c)
    """
    file = BytesIO()
    _save_png(_picture(image), file, 0)
    return file.getvalue()


def rendering_cost_us(images: Uint8, scale: int) -> float:
    """What `render` will cost: a PNG's deflate is the dearest of the stills."""
    return 40 + 0.02 * images.size * scale * scale


def _picture(canvas: Uint8) -> Image.Image:
    return Image.fromarray(canvas[..., 0] if canvas.shape[-1] == 1 else canvas)


def _save_png(picture: Image.Image, file: BytesIO, _quality: int) -> None:
    picture.save(file, "PNG", compress_level=1)


def _save_webp(picture: Image.Image, file: BytesIO, quality: int) -> None:
    picture.save(file, "WEBP", quality=quality)


def _save_jpeg(picture: Image.Image, file: BytesIO, quality: int) -> None:
    picture.save(file, "JPEG", quality=quality)


_SAVERS: dict[str, Callable[[Image.Image, BytesIO, int], None]] = {
    "png": _save_png,
    "webp": _save_webp,
    "jpeg": _save_jpeg,
}


def _animation(frames: Uint8, file_format: Literal["GIF", "PNG"], frame_ms: int) -> bytes:
    file = BytesIO()
    first, *rest = [_picture(frame) for frame in frames]
    first.save(file, file_format, save_all=True, append_images=rest, duration=frame_ms, loop=0)
    return file.getvalue()
