"""A request's pictures and latents, as rows that its model takes."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service import images, sizes
from service.bodies import Body, Placed
from service.call import Call
from service.errors import invalid, too_large
from service.schemas import Options
from service.wording import type_in_words

# What a number of `z` takes to become a finite float32, by `python -m benchmarks.wire`.
TENSOR_NUMBER_US = 0.002
NESTED_NUMBER_US = 0.1

# Of a request, all pictures together: so many times what one may have.
_PICTURES_TIMES = 16

# What of a request is decoded before another one has its turn at the thread.
_SHARE_US = 20_000.0

# Larger pictures are decoded as there is room: 20 bytes a pixel, as some formats and modes take, are 80 MB here.
_LARGE_PIXELS = 4_000_000

_UNEVEN = "lists of unequal lengths, or too deep"

_NUMBERS = {int, float}
_LATENT_DTYPES = (np.float32, np.float16)
# As deep as numpy goes.
_MAX_DEPTH = 64


async def from_pictures(call: Call[Options], pictures: Sequence[Placed[bytes]]) -> NDArray[np.uint8]:
    """Encoded pictures as rows that the model takes: fitted to its size, or of their own where sizes are open.

    Shapes:  -> (n, h, w, c)
    """
    n_bytes = sum(len(picture.value) for picture in pictures)
    cost_us = images.looking_cost_us(len(pictures), n_bytes=n_bytes)
    looks = await call.spend(cost_us, _looked_at, pictures, call.deployment.settings.max_picture_pixels)
    spec = call.model.manifest.image
    only = looks[0].plain if len(pictures) == 1 and looks[0].pixels <= _LARGE_PIXELS else None
    if only is not None and not spec.is_open:  # as most requests are, on the shortest way
        cost_us = images.decoding_cost_us(only, n_bytes=n_bytes, shape=spec.default_shape)
        return await call.spend(cost_us, images.to_rows, (only,), shape=spec.default_shape, where=(pictures[0].where,))
    shares = list(_shares(pictures, looks, shape=None if spec.is_open else spec.default_shape))
    first, *others = shares
    part = await _rows(call, first, n=len(pictures))
    if not others:
        return part
    rows = np.empty((len(pictures), *part.shape[1:]), np.uint8)
    rows[: len(part)] = part
    for share in others:
        await call.require_caller()
        part = await _rows(call, share, n=len(pictures), like=images.Size(rows.shape[1:], pictures[0].where))
        rows[share.first : share.first + len(part)] = part
    return rows


class _Share(NamedTuple):
    """Pictures of a request, from the first of them on, that are decoded at one go."""

    first: int
    pictures: Sequence[Placed[bytes]]
    looks: Sequence[images.Look]
    cost_us: float


def _looked_at(pictures: Sequence[Placed[bytes]], max_pixels: int) -> list[images.Look]:
    """What is known of each without opening it.

    Raises:  BadBody, TooLarge
    """
    looks = [images.look(data, where=where, max_pixels=max_pixels) for where, data in pictures]
    # Of plain ones the rows are bounded, and they cost what they seem to. One that is too large is refused by itself.
    total = sum([min(found.pixels, max_pixels) for found in looks if found.plain is None])
    if total > _PICTURES_TIMES * max_pixels:
        raise too_large("pictures", got=total, limit=_PICTURES_TIMES * max_pixels, unit="pixels")
    return looks


def _shares(
    pictures: Sequence[Placed[bytes]], looks: Sequence[images.Look], *, shape: tuple[int, ...] | None
) -> Iterator[_Share]:
    """All pictures, as many at a time as are soon decoded, so that requests take turns; alone what may take long."""
    costs = [
        images.decoding_cost_us(found.plain, n_bytes=len(picture.value), shape=shape)
        for picture, found in zip(pictures, looks, strict=True)
    ]
    first, cost_us = 0, costs[0]
    for index in range(1, len(pictures)):
        if cost_us + costs[index] > _SHARE_US:
            yield _Share(first, pictures[first:index], looks[first:index], cost_us)
            first, cost_us = index, 0.0
        cost_us += costs[index]
    yield _Share(first, pictures[first:], looks[first:], cost_us)


async def _rows(call: Call[Options], share: _Share, *, n: int, like: images.Size | None = None) -> NDArray[np.uint8]:
    """The rows of a share of the n pictures of a request; where sizes are open, of the size of the first of all."""
    spec, opened = call.model.manifest.image, _opened(call, share, n)
    where = [picture.where for picture in share.pictures]
    if spec.is_open:
        work = partial(
            images.to_rows_of_their_size, opened, channels=spec.channels, stride=spec.stride, where=where, like=like
        )
    else:
        work = partial(images.to_rows, opened, shape=spec.default_shape, where=where)
    pixels = max(found.pixels for found in share.looks)
    if pixels > _LARGE_PIXELS:
        return await call.spend_with_room(pixels, work)
    return await call.spend(share.cost_us, work)


def _opened(call: Call[Options], share: _Share, n: int) -> Iterator[images.Opened]:
    """The pictures of a share of n, one after the other. Nothing is kept of one when the next is opened.

    Raises:  as `images.open_as`, and Invalid or TooLarge where sizes are open and the model does not take one
    """
    for placed, found in zip(share.pictures, share.looks, strict=True):
        yield _open(call, placed, found, n=n)


def _open(call: Call[Options], placed: Placed[bytes], found: images.Look, *, n: int) -> images.Opened:
    where, data = placed
    picture = images.open_as(found, data, where=where, max_pixels=call.deployment.settings.max_picture_pixels)
    if call.model.manifest.image.is_open:
        _require_size(call, picture, where=where, n=n)
    return picture


def _require_size(call: Call[Options], picture: images.Opened, *, where: str, n: int) -> None:
    """Refuse a picture that is too small, too large or, as one of n, too many: before it is decoded.

    Raises:  Invalid, TooLarge
    """
    sides, *_ = call.model.image_axes
    if min(picture.size) < sides[0] or max(picture.size) > sides[-1]:
        found = images.size_in_words((picture.height, picture.width))
        raise invalid(where, got=found, expected=f"sides from {sides[0]} to {sides[-1]}")
    # An orientation may yet turn it, which leaves its area; all must turn out to have the size of the first.
    size = tuple(side - side % sides.step for side in picture.size)
    call.check_rows(call.model.engine_rows(n, size))


async def images_of(call: Call[Options]) -> NDArray[np.uint8] | None:
    """The request's images as rows that the model takes; None where it carries none.

    Shapes:  -> (n, h, w, c)
    Raises:  BadBody, TooLarge, Invalid or OutOfMemory that names the picture
    """
    if call.body.pictures:
        call.check_rows(len(call.body.pictures))
        return await from_pictures(call, call.body.pictures)
    tensor = call.body.members.get("images")
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
        raise invalid("body.images", got=type_in_words(tensor), expected="a list of base64 pictures")
    if tensor.dtype != np.uint8 or not sizes.takes(axes, tensor.shape[1:]) or len(tensor) == 0:
        found = f"{tensor.dtype} {tensor.shape}"
        raise invalid("tensor.images", got=found, expected=f"uint8 {sizes.in_words(axes)}, n ≥ 1")
    call.check_rows(call.model.engine_rows(len(tensor), tensor.shape[1:]))
    return tensor


async def latents_of(call: Call[Options]) -> NDArray[np.float32] | None:
    """The request's latents; a single one counts as one row; None where it carries none.

    Shapes:  -> (n, *latent_shape)
    """
    value = call.body.members.get("z")
    if value is None:
        return None
    cost_us = TENSOR_NUMBER_US * value.size if isinstance(value, np.ndarray) else nested_cost_us(call.body)
    latents = await call.spend(cost_us, as_latents, call, value, where=f"{call.body.place}.z")
    call.check_rows(len(latents))
    return latents


def nested_cost_us(body: Body) -> float:
    """What `as_latents` will cost for all numbers that a body of JSON may hold, of two bytes or more each."""
    return NESTED_NUMBER_US * body.json_bytes / 2


def as_latents(call: Call[Options], value: Any, *, where: str) -> NDArray[np.float32]:
    """Nested numbers or a float tensor as finite latents.

    Shapes:  -> (n, *latent_shape)
    Raises:  Invalid that names the first row that is wrong
    """
    axes = call.model.latent_axes
    if isinstance(value, np.ndarray):
        _require_latents(value, axes, where=where)
        numbers = value
    else:
        _require_lengths(call, value, where=where)
        numbers = _numbers(value, where)
    rows = numbers[None] if numbers.ndim == len(axes) else numbers
    with np.errstate(over="ignore"):
        latents = np.ascontiguousarray(rows, np.float32)
    finite = np.isfinite(latents).reshape(len(latents), -1).all(axis=1)
    if not finite.all():
        raise invalid(
            f"{where}[{int(np.argmin(finite))}]",
            got="NaN, infinity, or a number beyond float32",
            expected="finite numbers in float32",
        )
    return latents


def _require_latents(tensor: NDArray[Any], axes: sizes.Axes, *, where: str) -> None:
    if tensor.dtype not in _LATENT_DTYPES or not _are_latents(axes, tensor.shape):
        expected = f"float32 or float16 {_in_words(axes)}"
        raise invalid(where, got=f"{tensor.dtype} {tensor.shape}", expected=expected)


def _require_lengths(call: Call[Options], nested: Any, *, where: str) -> None:
    """Nothing, unless the lengths of lists along their first places tell that these are no latents, or too many: to
    look through a long one's numbers, or to make an array of them, keeps the interpreter from all other requests.

    Raises:  Invalid, TooLarge
    """
    axes, shape = call.model.latent_axes, _first_shape(nested)
    if not _are_latents(axes, shape) and 0 < len(shape) <= _MAX_DEPTH:  # of others `_numbers` says what they are
        raise invalid(where, got=f"shape {shape}", expected=_in_words(axes))
    if len(shape) > len(axes):
        call.check_rows(shape[0])


def _in_words(axes: sizes.Axes) -> str:
    return f"{sizes.in_words(axes)}, n ≥ 1, or one latent"


def _are_latents(axes: sizes.Axes, shape: tuple[int, ...]) -> bool:
    """Whether this is the shape of rows, one or more, or of one of them."""
    one = shape if len(shape) == len(axes) else shape[1:]
    return sizes.takes(axes, one) and shape[0] > 0


def _first_shape(nested: Any) -> tuple[int, ...]:
    """The lengths of nested lists along their first places, as far as numpy goes and one further."""
    lengths: list[int] = []
    while isinstance(nested, list) and len(lengths) <= _MAX_DEPTH:
        lengths.append(len(nested))
        nested = nested[0] if nested else None
    return tuple(lengths)


def _numbers(value: Any, where: str) -> NDArray[Any]:
    """Nested numbers as an array.

    Raises:  Invalid if they are no list, or that names the first place of something else, or the first row which is of
             another shape than the first
    """
    if not isinstance(value, list):
        raise invalid(where, got=type_in_words(value), expected="a list of numbers, or of such lists")
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
        raise invalid(f"{where}{place}", got=type_in_words(item), expected="a number")


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
