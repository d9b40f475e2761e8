"""A request's pictures and latents, as rows that its model takes."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service import images, png, sizes
from service.bodies import Body, Named
from service.errors import invalid
from service.intake import Call
from service.schemas import Options

# What a number of `z` takes to become a finite float32, by `python -m benchmarks.wire`.
TENSOR_NUMBER_US = 0.002
NESTED_NUMBER_US = 0.1

_UNEVEN = "lists of unequal lengths, or too deep"

_NUMBERS = {int, float}
# As deep as numpy goes.
_MAX_DEPTH = 64


async def from_pictures(call: Call[Options], pictures: Sequence[Named]) -> NDArray[np.uint8]:
    """Encoded pictures as rows that the model takes: fitted to its size, or of their own where sizes are open.

    Shapes:  -> (n, h, w, c)
    """
    n_bytes = sum(len(picture.value) for picture in pictures)
    plain = await call.spend(images.opening_cost_us(len(pictures), n_bytes=n_bytes), _plain, pictures)
    where = [picture.where for picture in pictures]
    spec = call.model.manifest.image
    cost = images.decoding_cost_us(plain, n_bytes=n_bytes)
    opened = _opened(call, pictures, plain)
    if not spec.is_open:
        return await call.spend(cost, images.to_rows, opened, shape=spec.default_shape, where=where)
    return await call.spend(
        cost, images.to_rows_of_their_size, opened, channels=spec.channels, stride=spec.stride, where=where
    )


def _plain(pictures: Sequence[Named]) -> list[png.Plain | None]:
    """Those that are plain PNGs, which cost what they seem to."""
    return [png.read(picture.value) for picture in pictures]


def _opened(
    call: Call[Options], pictures: Sequence[Named], plain: Sequence[png.Plain | None]
) -> Iterator[images.Opened]:
    """Pictures, one after the other while the request has time. Nothing is kept of one when the next is opened.

    Raises:  DeadlinePassed; Invalid or TooLarge where sizes are open and the model does not take one
    """
    max_pixels = call.deployment.settings.max_picture_pixels
    for (where, data), found in zip(pictures, plain, strict=True):
        if call.deadline.left_s() < 0:
            raise call.deadline.passed()
        if found is None:
            yield _taken(call, images.open_picture(data, where=where, max_pixels=max_pixels), where, len(pictures))
        else:
            images.require_pixels(found, where=where, max_pixels=max_pixels)
            yield _taken(call, found, where, len(pictures))


def _taken(call: Call[Options], picture: images.Opened, where: str, n: int) -> images.Opened:
    """The picture, if it is not too small, too large or, as one of n, too many: before it is decoded."""
    if call.model.manifest.image.is_open:
        sides, *_ = call.model.image_axes
        if min(picture.size) < sides[0] or max(picture.size) > sides[-1]:
            found = images.size_in_words((picture.height, picture.width))
            raise invalid(where, got=found, expected=f"sides from {sides[0]} to {sides[-1]}")
        # An orientation may yet turn it, which leaves its area; all must turn out to have the size of the first.
        size = tuple(side - side % sides.step for side in picture.size)
        call.check_rows(call.engine_rows(n, size))
    return picture


async def images_of(call: Call[Options]) -> NDArray[np.uint8] | None:
    """The request's images as rows that the model takes; None where it carries none.

    Shapes:  -> (n, h, w, c)
    """
    if call.body.pictures:
        call.check_rows(len(call.body.pictures))
        return await from_pictures(call, call.body.pictures)
    tensor = (call.body.members or {}).get("images")
    return None if tensor is None else from_tensor(call, tensor)


async def some_images_of(call: Call[Options]) -> NDArray[np.uint8]:
    """The request's images, of a verb that cannot do without.

    Shapes:  -> (n, h, w, c)
    Raises:  as `images_of`, and Invalid where there are none
    """
    image = await images_of(call)
    if image is None:
        raise invalid("body", got="no images", expected="at least one picture")
    return image


def from_tensor(call: Call[Options], tensor: Any) -> NDArray[np.uint8]:
    """A tensor of images, which is taken as it is and so must have a shape that the model takes.

    Shapes:  -> (n, h, w, c)
    """
    axes = call.model.image_axes
    if not isinstance(tensor, np.ndarray):
        raise invalid("body.images", got=type(tensor).__name__, expected="a list of base64 pictures")
    if tensor.dtype != np.uint8 or not sizes.takes(axes, tensor.shape[1:]) or len(tensor) == 0:
        found = f"{tensor.dtype} {tensor.shape}"
        raise invalid("tensor.images", got=found, expected=f"uint8 {sizes.in_words(axes)}, n ≥ 1")
    call.check_rows(call.engine_rows(len(tensor), tensor.shape[1:]))
    return tensor


async def latents_of(call: Call[Options]) -> NDArray[np.float32] | None:
    """The request's latents; a single one counts as one row; None where it carries none.

    Shapes:  -> (n, *latent_shape)
    """
    value = (call.body.members or {}).get("z")
    if value is None:
        return None
    cost = TENSOR_NUMBER_US * value.size if isinstance(value, np.ndarray) else nested_cost_us(call.body)
    latents = await call.spend(cost, as_latents, call, value, where="z")
    call.check_rows(len(latents))
    return latents


def nested_cost_us(body: Body) -> float:
    """What `as_latents` will cost for all numbers that a body of JSON may hold, of two bytes or more each."""
    return NESTED_NUMBER_US * body.json_bytes / 2


def size_of_latents(call: Call[Options], z: NDArray[np.float32]) -> tuple[int, int, int]:
    """The shape of the pictures that these latents decode to.

    Shapes:  z (n, *latent_shape) -> (h, w, c)
    """
    return call.model.manifest.image_shape_of(z.shape[1:])


def as_latents(call: Call[Options], value: Any, *, where: str) -> NDArray[np.float32]:
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
    axes = call.model.latent_axes
    rows = numbers[None] if numbers.ndim == len(axes) else numbers
    if not known or not sizes.takes(axes, rows.shape[1:]) or len(rows) == 0:
        found = f"{numbers.dtype} {numbers.shape}"
        raise invalid(where, got=found, expected=f"float32 {sizes.in_words(axes)}, n ≥ 1, or one latent")
    with np.errstate(over="ignore"):
        latents = np.ascontiguousarray(rows, np.float32)
    finite = np.isfinite(latents).reshape(len(latents), -1).all(axis=1)
    if not finite.all():
        raise invalid(f"{where}[{int(np.argmin(finite))}]", got="NaN or infinity", expected="finite float32")
    return latents


def _numbers(value: Any, where: str) -> NDArray[Any]:
    """Nested numbers as an array.

    Raises:  Invalid if they are no list, or that names the first place of something else, or the first row which is of
             another shape than the first
    """
    if not isinstance(value, list):
        raise invalid(where, got=type(value).__name__, expected="a list of numbers, or of such lists")
    _require_numbers(value, where)
    try:
        return np.asarray(value)
    except ValueError:
        shapes = [_shape(row) for row in value]
    for index, shape in enumerate(shapes):
        if shape is None:
            raise invalid(f"{where}[{index}]", got=_UNEVEN, expected="one shape for all rows")
        if shape != shapes[0]:
            raise invalid(f"{where}[{index}]", got=shape, expected=f"{shapes[0]} as {where}[0]")
    raise invalid(where, got=_UNEVEN, expected="one shape for all rows")


def _require_numbers(nested: list[Any], where: str) -> None:
    """Nothing, if these are numbers and lists of them. Looked for before numpy sees any: it would make room in every
    place for the longest text of all.

    Raises:  Invalid that names the first place of something else
    """
    path = _first_wrong(nested, depth=_MAX_DEPTH)
    if path is not None:
        item: Any = nested
        for index in path:
            item = item[index]
        place = "".join(f"[{index}]" for index in path)
        raise invalid(f"{where}{place}", got=type(item).__name__, expected="a number")


def _first_wrong(item: Any, *, depth: int) -> tuple[int, ...] | None:
    """The way to the first place that is neither a number nor a list."""
    if type(item) is not list:
        return None if type(item) in _NUMBERS else ()
    if depth == 0 or set(map(type, item)) <= _NUMBERS:
        return None
    for index, inner in enumerate(item):
        if (rest := _first_wrong(inner, depth=depth - 1)) is not None:
            return index, *rest
    return None


def _shape(row: Any) -> tuple[int, ...] | None:
    try:
        return np.asarray(row).shape
    except ValueError:
        return None
