"""Pictures to send: shapes under soft noise, so that their PNGs are as hard to pack as photographs'."""

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Uint8 = NDArray[np.uint8]

_ENLARGED = 4  # drawn so much larger, for smooth edges
_SHAPES = 8
_NOISE = 4.0  # grey levels, standard deviation


def drawn(shape: tuple[int, int, int], *, seed: int) -> Uint8:
    """One picture, the same for the same seed.

    Shapes:  shape (h, w, c), c 1 or 3 -> (h, w, c)
    """
    rng = np.random.default_rng(seed)
    height, width, channels = shape
    size = (_ENLARGED * width, _ENLARGED * height)
    canvas = Image.new("RGB", size, _colour(rng))
    pen = ImageDraw.Draw(canvas)
    for is_round in rng.integers(2, size=_SHAPES):
        left, top, right, bottom = np.sort(rng.integers(0, size, (2, 2)), axis=0).ravel().tolist()
        draw = pen.ellipse if is_round else pen.rectangle
        draw((left, top, right, bottom), fill=_colour(rng))
    small = canvas.filter(ImageFilter.GaussianBlur(_ENLARGED / 2)).resize((width, height), Image.Resampling.BOX)
    pixels = np.asarray(small.convert("L" if channels == 1 else "RGB")).reshape(shape)
    noisy = pixels + rng.normal(0, _NOISE, shape)
    return noisy.clip(0, 255).astype(np.uint8)


def as_png(image: Uint8) -> bytes:
    """A picture as Pillow writes it by default.

    Shapes:  image (h, w, c)
    """
    return saved(image, "PNG")


def saved(image: Uint8, file_format: str, **options: Any) -> bytes:
    """A file of a picture, by Pillow.

    Shapes:  image (h, w, c)
    """
    file = BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, file_format, **options)
    return file.getvalue()


def of_png(content: bytes, *, channels: int) -> Uint8:
    """The pixels of a PNG, as Pillow reads it.

    Shapes:  -> (h, w, channels)
    """
    array = np.asarray(Image.open(BytesIO(content)).convert("L" if channels == 1 else "RGB"))
    return array.reshape(*array.shape[:2], channels)


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(256, size=3).tolist()
    return red, green, blue
