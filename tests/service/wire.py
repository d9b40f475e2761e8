"""What a client does with bytes: pictures and tensors to bodies, answers back to arrays."""

import base64
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence
from safetensors.numpy import load, save

Uint8 = NDArray[np.uint8]

SAFETENSORS = "application/vnd.safetensors"


def pixels(n: int, shape: tuple[int, int, int], seed: int = 0) -> Uint8:
    """n pictures of noise, no two alike.

    Shapes:  -> (n, h, w, c)
    """
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def latents(n: int, latent_shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    """n latents.

    Shapes:  -> (n, *latent_shape)
    """
    return np.random.default_rng(seed).standard_normal((n, *latent_shape), dtype=np.float32)


def picture(image: Uint8) -> Image.Image:
    """One picture as Pillow sees it.

    Shapes:  image (h, w, c)
    """
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def png(image: Uint8) -> bytes:
    return saved(picture(image), "PNG")


def base64_png(image: Uint8) -> str:
    return base64.b64encode(png(image)).decode()


def form(images: Uint8) -> list[tuple[str, tuple[str, bytes]]]:
    """The parts of a multipart form, as httpx takes them."""
    return [("images", (f"{index}.png", png(image))) for index, image in enumerate(images)]


def opened(content: bytes, channels: int) -> Uint8:
    """The pixels of an encoded picture.

    Shapes:  -> (h, w, channels)
    """
    with Image.open(BytesIO(content)) as image:
        return _array(image, channels)


def frames(content: bytes, channels: int) -> Uint8:
    """The pixels of every frame of an animation.

    Shapes:  -> (n, h, w, channels)
    """
    with Image.open(BytesIO(content)) as image:
        return np.stack([_array(frame, channels) for frame in ImageSequence.Iterator(image)])


def tiles(canvas: Uint8, shape: tuple[int, int, int], n: int) -> Uint8:
    """The first n pictures of a grid, line by line: cut out one by one.

    Shapes:  canvas (lines · h, columns · w, c) -> (n, h, w, c)
    """
    height, width, _ = shape
    columns = canvas.shape[1] // width
    corners = [divmod(index, columns) for index in range(n)]
    cut = [canvas[y * height : (y + 1) * height, x * width : (x + 1) * width] for y, x in corners]
    return np.stack(cut)


def from_json(encoded: list[str], channels: int) -> Uint8:
    """The pictures of a JSON answer.

    Shapes:  -> (n, h, w, channels)
    """
    return np.stack([opened(base64.b64decode(item, validate=True), channels) for item in encoded])


def tensors(**named: NDArray[Any]) -> bytes:
    return save(named)


def read_tensors(content: bytes) -> Mapping[str, NDArray[Any]]:
    named: dict[str, NDArray[Any]] = load(content)
    return named


def assert_near(found: Uint8, expected: Uint8, levels: int = 1) -> None:
    """Pictures of one shape that differ by so many grey levels at most."""
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= levels


def _array(image: Image.Image, channels: int) -> Uint8:
    return np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(image.height, image.width, channels)
