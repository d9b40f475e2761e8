"""How large pictures and latents of a stranger's pair are: from what the files state, and from runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.foreign.pair import Pair
from export.frozen import CannotImport, Uint8
from service.graph import RowShape
from service.manifest import ImageSpec

# Height and width where nobody asks for any and the source does not say.
DEFAULT_SIDE = 256
# Height and width, different ones, at which a stride is measured that nobody stated.
_MEASURED = (64, 128)


@dataclass(frozen=True)
class Sides:
    """What is to be known of open sizes, in pixels: bound and default of height and width, and the stride, which is
    measured where it is None.
    """

    max_side: int | None
    default: int
    stride: int | None


@dataclass(frozen=True)
class Sizes:
    """`tried` is the height and width of the pictures that were measured. `channels_move`: latents of open sizes are
    (channels, h, w) in a bundle, and (h, w, channels) in a graph of that layout.
    """

    image: ImageSpec
    latent_shape: RowShape
    tried: tuple[int, int]
    channels_move: bool = False


def sizes(pair: Pair, sides: Sides) -> Sizes:
    """The sizes of a pair; open where both files leave height and width free.

    Raises:  CannotImport if the files do not fit each other, or into what bundles can say
    """
    height, width, channels = pair.pixels_in.axes(pair.encoder.takes, path=pair.encoder.path)
    latent_axes = pair.decoder.axes[1:]
    fixed = [axis for axis in latent_axes if axis is not None]
    if len(fixed) == len(latent_axes):
        decoded = pair.decode(np.zeros((1, *fixed), np.float32)).shape[1:]
        _require_fit(pair, decoded, (height, width, channels), "the decoder gives pictures", "the encoder takes")
        height, width, channels = decoded
    if channels not in (1, 3):
        found = f"{'free' if channels is None else channels} channels"
        expected = f"1 or 3 where the layout {pair.pixels_in.layout} has them"
        raise CannotImport(f"{pair.encoder.path}: {pair.encoder.takes.name} has {found}, expected {expected}")
    if height is None and width is None:
        return _open_sizes(pair, sides, channels)
    if height is None or width is None:
        raise CannotImport(f"{pair.encoder.path}: one of height and width is free, expected both or neither")
    mu, _ = pair.encode(pictures(1, (height, width, channels)))
    _require_way_back(pair, mu, (height, width, channels))
    return Sizes(ImageSpec(height=height, width=width, channels=channels), mu.shape[1:], tried=(height, width))


def pictures(rows: int, shape: tuple[int, int, int]) -> Uint8:
    """Pictures to try graphs with.

    Shapes:  shape (h, w, c) -> (rows, h, w, c)
    """
    return np.random.default_rng(0).integers(0, 256, (rows, *shape), dtype=np.uint8)


def _open_sizes(pair: Pair, sides: Sides, channels: int) -> Sizes:
    path, layout = pair.encoder.path, pair.pixels_in.layout
    if sides.max_side is None:
        raise CannotImport(f"{path}: height and width are free, expected --max-side to bound them")
    _require_room(path, sides.max_side, stride=sides.stride or 1)
    tried = (2 * sides.stride, 3 * sides.stride) if sides.stride else _MEASURED
    mu, _ = pair.encode(pictures(1, (*tried, channels)))
    if mu.ndim != 4 or not mu.size:
        shown = ", ".join(map(str, mu.shape[1:]))
        raise CannotImport(f"{path}: pictures of any size have latents ({shown}), expected three axes")
    _, *places, depth = mu.shape if layout == "nhwc" else (1, *mu.shape[2:], mu.shape[1])
    stride = sides.stride or tried[0] // places[0]
    if tuple(stride * place for place in places) != tried:
        found = f"pictures of {tried[0]}×{tried[1]} pixels have latents of {places[0]}×{places[1]} places"
        raise CannotImport(f"{path}: {found}, expected one to {sides.stride or 'a whole number of'} pixels (--stride)")
    _require_room(path, sides.max_side, stride=stride)
    _require_way_back(pair, mu, (*tried, channels))
    image = ImageSpec(
        height=None,
        width=None,
        channels=channels,
        stride=stride,
        default_side=max(1, min(sides.default, sides.max_side) // stride) * stride,
        max_side=sides.max_side // stride * stride,
    )
    return Sizes(image, (depth, None, None), tried=tried, channels_move=layout == "nhwc")


def _require_room(path: Path, max_side: int, *, stride: int) -> None:
    """Nothing, if the largest side has room for one place of a latent."""
    if max_side < stride:
        raise CannotImport(f"{path}: --max-side is {max_side}, expected {stride}, the stride, or more")


def _require_way_back(pair: Pair, mu: NDArray[Any], shape: tuple[int, int, int]) -> None:
    """Nothing, if the decoder takes the latents of pictures of this shape, and gives pictures of this shape again."""
    _require_fit(pair, mu.shape[1:], pair.decoder.axes[1:], "the encoder gives latents", "the decoder takes")
    decoded = pair.decode(mu).shape[1:]
    _require_fit(pair, decoded, shape, "the decoder gives pictures", "the encoder takes")


def _require_fit(pair: Pair, found: Sequence[int], expected: RowShape, gives: str, takes: str) -> None:
    axes = zip(found, expected, strict=False)
    if len(found) != len(expected) or any(wanted not in (None, axis) for axis, wanted in axes):
        shown = [", ".join("any" if axis is None else str(axis) for axis in shape) for shape in (found, expected)]
        raise CannotImport(f"{pair.encoder.path} and {pair.decoder.path}: {gives} ({shown[0]}), {takes} ({shown[1]})")
