"""A request's pictures and latents, as rows that its model takes."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service import images
from service.bodies import Named
from service.budget import spend
from service.errors import invalid
from service.intake import Call
from service.schemas import Options


async def from_pictures(call: Call[Options], pictures: Sequence[Named]) -> NDArray[np.uint8]:
    """Encoded pictures as rows that the model takes.

    Shapes:  -> (n, h, w, c)
    """
    limit = call.deployment.settings.max_picture_pixels
    opened = await spend(images.opening_cost_us(len(pictures)), _opened, pictures, limit)
    return await spend(
        images.decoding_cost_us(opened),
        images.to_rows,
        opened,
        shape=call.model.manifest.image.shape,
        where=[picture.where for picture in pictures],
    )


def _opened(pictures: Sequence[Named], max_pixels: int) -> list[Image.Image]:
    return [images.open_picture(picture.value, where=picture.where, max_pixels=max_pixels) for picture in pictures]


async def images_of(call: Call[Options]) -> NDArray[np.uint8] | None:
    """The request's images as rows that the model takes; None where it carries none.

    Shapes:  -> (n, h, w, c)
    """
    if call.body.pictures:
        call.check_rows(len(call.body.pictures))
        return await from_pictures(call, call.body.pictures)
    tensor = (call.body.members or {}).get("images")
    return None if tensor is None else from_tensor(call, tensor)


def from_tensor(call: Call[Options], tensor: Any) -> NDArray[np.uint8]:
    """A tensor of images, which must have the model's exact shape.

    Shapes:  -> (n, h, w, c)
    """
    shape = call.model.manifest.image.shape
    if not isinstance(tensor, np.ndarray):
        raise invalid("body.images", got=type(tensor).__name__, expected="a list of base64 pictures")
    if tensor.dtype != np.uint8 or tensor.shape[1:] != shape or len(tensor) == 0:
        raise invalid("tensor.images", got=f"{tensor.dtype} {tensor.shape}", expected=f"uint8 {_shape(shape)}, n ≥ 1")
    call.check_rows(len(tensor))
    return tensor


async def latents_of(call: Call[Options]) -> NDArray[np.float32] | None:
    """The request's latents; a single one counts as one row; None where it carries none.

    Shapes:  -> (n, *latent_shape)
    """
    value = (call.body.members or {}).get("z")
    if value is None:
        return None
    shape = call.model.manifest.latent_shape
    known = 0.002 * value.size if isinstance(value, np.ndarray) else 0.0
    nested = 0.1 * len(value) * prod(shape) if isinstance(value, list) else 0.0
    return await spend(known + nested, as_latents, value, shape, where="z")


def as_latents(value: Any, latent_shape: tuple[int, ...], *, where: str) -> NDArray[np.float32]:
    """Nested numbers or a float tensor as finite latents.

    Shapes:  -> (n, *latent_shape)
    Raises:  Invalid that names the first row that is wrong
    """
    if isinstance(value, np.ndarray):
        numbers = value
        known = numbers.dtype in (np.float32, np.float16)
    else:
        numbers = _numbers(value, where)
        known = numbers.dtype.kind in "iuf"
    rows = numbers[None] if numbers.shape == latent_shape else numbers
    if not known or rows.shape[1:] != latent_shape or len(rows) == 0:
        raise invalid(
            where,
            got=f"{numbers.dtype} {numbers.shape}",
            expected=f"float32 {_shape(latent_shape)}, n ≥ 1, or one latent",
        )
    with np.errstate(over="ignore"):
        latents = np.ascontiguousarray(rows, np.float32)
    finite = np.isfinite(latents).reshape(len(latents), -1).all(axis=1)
    if not finite.all():
        raise invalid(f"{where}[{int(np.argmin(finite))}]", got="NaN or infinity", expected="finite float32")
    return latents


def _numbers(value: Any, where: str) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError:
        raise invalid(where, got="rows of unequal lengths", expected="one shape for all rows") from None


def _shape(row_shape: tuple[int, ...]) -> str:
    return f"(n, {', '.join(map(str, row_shape))})"
