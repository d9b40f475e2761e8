"""The row shapes that a model takes: the lengths that each axis may have, and the words for them."""

from service.manifest import Manifest

Axes = tuple[range, ...]


def of_images(manifest: Manifest) -> Axes:
    """Lengths of the axes of a picture (h, w, c)."""
    image = manifest.image
    if image.max_side is None:
        return _exactly(image.default_shape)
    sides = range(image.stride, image.max_side + 1, image.stride)
    return sides, sides, *_exactly((image.channels,))


def of_latents(manifest: Manifest) -> Axes:
    """Lengths of the axes of a latent."""
    image = manifest.image
    shape = manifest.latent_shape_of(*image.default_shape[:2])
    if image.max_side is None:
        return _exactly(shape)
    places = range(1, image.max_side // image.stride + 1)
    return *_exactly(shape[:1]), places, places


def takes(axes: Axes, row_shape: tuple[int, ...]) -> bool:
    """Whether a row may have this shape."""
    return len(row_shape) == len(axes) and all(length in axis for length, axis in zip(row_shape, axes, strict=True))


def in_words(axes: Axes) -> str:
    """The shape of n rows: `(n, 6, 5, 3)`, or `(n, h, w, 3), h and w a multiple of 8 up to 512`."""
    names = iter("hw")
    shown = ", ".join(str(axis[0]) if len(axis) == 1 else next(names) for axis in axes)
    free = [axis for axis in axes if len(axis) > 1]
    return f"(n, {shown})" + (f", h and w {length_in_words(free[0])}" if free else "")


def length_in_words(axis: range) -> str:
    """The lengths of one axis: `6`, or `a multiple of 8 up to 512`."""
    if len(axis) == 1:
        return str(axis[0])
    return f"from 1 to {axis[-1]}" if axis.step == 1 else f"a multiple of {axis.step} up to {axis[-1]}"


def _exactly(shape: tuple[int, ...]) -> Axes:
    return tuple(range(length, length + 1) for length in shape)
