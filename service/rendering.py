"""Pictures go out: uint8 arrays become a PNG, WebP or JPEG that shows all of them, or a GIF or APNG that moves."""

from io import BytesIO
from math import ceil, isqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Imported by name, so that Pillow writes these formats and never goes looking for its others.
from PIL import (
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from service import png

Uint8 = NDArray[np.uint8]
Encoding = Literal["png", "webp", "jpeg", "gif", "apng"]

# A GIF counts time in 16 bits, in hundredths of a second. Equal frames become one, which is shown for as long as all.
LONGEST_GIF_MS = 655_350

# Largest side that each format can state; libjpeg stops a little below its format.
LONGEST_SIDE = {"png": 2**31 - 1, "apng": 2**31 - 1, "webp": 16383, "jpeg": 65500, "gif": 65535}

# What a file costs to write, and each of its values, by `python -m benchmarks.codecs`.
_COSTS_US: dict[Encoding, tuple[float, float]] = {
    "png": (20, 0.006),
    "jpeg": (40, 0.006),
    "webp": (100, 0.2),
    "apng": (60, 0.3),
    "gif": (200, 2),
}


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

    Shapes:  images (…, h, w, c) -> (…, h · scale, w · scale, c)
    """
    # Pixels first: numpy copies them one by one, and lines whole.
    return images if scale == 1 else images.repeat(scale, axis=-2).repeat(scale, axis=-3)


def render(images: Uint8, encoding: Encoding, *, columns: int, scale: int, quality: int, frame_ms: int) -> bytes:
    """One file that shows all pictures: a grid, or for GIF and APNG one frame after the other.

    Shapes:  images (n, h, w, c)
    Units:   frame_ms milliseconds a frame; quality 1 to 100, read by WebP and JPEG only
    """
    if encoding in {"gif", "apng"}:
        return _animation(enlarge(images, scale), "GIF" if encoding == "gif" else "PNG", frame_ms)
    canvas = enlarge(grid(images, columns), scale)
    return png.encode(canvas) if encoding == "png" else _still(canvas, encoding, quality)


def cost_us(values: int, encoding: Encoding) -> float:
    """What `render` will cost: so many values, of all pixels of a grid or of all frames, as they are enlarged."""
    fixed, per_value = _COSTS_US[encoding]
    return fixed + per_value * values


def _still(canvas: Uint8, file_format: str, quality: int) -> bytes:
    file = BytesIO()
    _picture(canvas).save(file, file_format, quality=quality)
    return file.getvalue()


def _animation(frames: Uint8, file_format: Literal["GIF", "PNG"], frame_ms: int) -> bytes:
    file = BytesIO()
    first, *rest = [_picture(frame) for frame in frames]
    first.save(file, file_format, save_all=True, append_images=rest, duration=frame_ms, loop=0)
    return file.getvalue()


def _picture(canvas: Uint8) -> Image.Image:
    return Image.fromarray(canvas[..., 0] if canvas.shape[-1] == 1 else canvas)
