"""Pictures to measure graphs with: real ones where someone has them, smooth ones where not, and noise beside both."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from export.frozen import Uint8
from model import data
from model.data import Dataset
from model.errors import OtherShape
from model.fitting import covering
from model.parts import all_over
from service.manifest import ImageSpec

_WAVES = 3
_MOST_PERIODS = 3
# Pictures that are read of each part of a data set, a tenth of which are to measure with where it has no test part; of
# large ones, of which fewer run, fewer.
_READ, _LEAST = 2_560, 20
_READ_BYTES = 2**28

# Pictures that a person has, by height and width; None where there are none.
Real = Callable[[int, int], Uint8 | None]


@dataclass(frozen=True, eq=False)
class Sample:
    """Pictures of one size, real or smooth ones in turn with noise.

    Shapes:  images (n, h, w, c); `real` of them are real
    """

    images: Uint8
    real: int


def real_of(path: Path | None, *, own: Uint8 | None, image: ImageSpec) -> Real:
    """Test pictures of a data set, of any size that a model takes; without one, the source's own in their own size.

    Shapes:  own (n, h, w, c)
    Raises:  BadData from what is returned, if there are none at the path that have a size or can be brought to it
    """

    @cache
    def at(height: int, width: int) -> Uint8 | None:
        if path is not None:
            return _read(path, height=height, width=width, image=image).test
        return own if own is not None and own.shape[1:3] == (height, width) else None

    return at


def _read(path: Path, *, height: int, width: int, image: ImageSpec) -> Dataset:
    """As many pictures as are needed, of a size; arrays too are brought to it where a model takes any."""
    most = max(_LEAST, min(_READ, _READ_BYTES // (height * width * image.channels)))
    try:
        return data.read(path, size=(height, width), channels=image.channels, most=most)
    except OtherShape:
        if not image.is_open:
            raise
    found = data.read(path, channels=image.channels)
    train, test = (
        _fitted(images[all_over(len(images), most=most)], height=height, width=width)
        for images in (found.train, found.test)
    )
    return replace(found, train=train, test=test)


def _fitted(images: Uint8, *, height: int, width: int) -> Uint8:
    """Pictures brought to a size as those are that come encoded.

    Shapes:  images (n, h, w, c) -> (n, height, width, c)
    """
    grey = images.shape[-1] == 1
    rows = [Image.fromarray(row[..., 0] if grey else row) for row in images]
    fitted = [np.asarray(covering(row, height=height, width=width)) for row in rows]
    return np.stack(fitted).reshape(len(images), height, width, -1)


def to_learn_from(path: Path, image: ImageSpec) -> Uint8:
    """Training pictures of a data set, of a model's default size: others than those to measure with, should both be one
    data set.

    Shapes:  -> (n, h, w, c)
    Raises:  BadData if there are none at the path that have this shape or can be brought to it
    """
    height, width, _ = image.default_shape
    return _read(path, height=height, width=width, image=image).train


def sample(real: Real, shape: tuple[int, int, int], *, n: int, seed: int) -> Sample:
    """Up to n pictures of a shape (h, w, c): natural ones in turn with noise."""
    pictures = natural(real, shape, n=(n + 1) // 2, seed=seed)
    noise = np.random.default_rng(seed).integers(0, 256, pictures.shape, dtype=np.uint8)
    images = np.stack((pictures, noise), axis=1).reshape(-1, *shape)[:n]
    return Sample(images, real=0 if real(*shape[:2]) is None else len(pictures))


def natural(real: Real, shape: tuple[int, int, int], *, n: int, seed: int) -> Uint8:
    """Up to n real pictures, or n smooth ones where there are none.

    Shapes:  shape (h, w, c) -> (n, h, w, c)
    """
    found = real(*shape[:2])
    return smooth(n, shape, np.random.default_rng(seed)) if found is None else found[all_over(len(found), most=n)]


def smooth(n: int, shape: tuple[int, int, int], generator: np.random.Generator) -> Uint8:
    """Pictures whose grey levels change slowly, as they do in photographs: sums of a few long plane waves.

    Shapes:  shape (h, w, c) -> (n, h, w, c)
    """
    height, width, channels = shape
    y, x = np.linspace(0, 1, height).reshape(-1, 1, 1), np.linspace(0, 1, width).reshape(-1, 1)
    images = np.empty((n, *shape), np.uint8)
    for image in images:
        periods_y, periods_x, phase = generator.uniform(-_MOST_PERIODS, _MOST_PERIODS, (3, _WAVES, 1, 1, channels))
        waves = np.sin(2 * np.pi * (periods_y * y + periods_x * x + phase))
        image[...] = np.rint(127.5 * (1 + waves.mean(axis=0)))
    return images
