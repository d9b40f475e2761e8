"""What every source of data hands on: its parts by name, each pictures of one size and their labels."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

# As float32 16 MiB, and their feature maps some GiB.
_VALUES_AT_ONCE = 2**22


@dataclass(frozen=True, eq=False)
class Part:
    """Pictures of one size, and their labels if all of them had one.

    Shapes:  images (n, h, w, c) uint8; labels (n,)
    """

    images: Images
    labels: Labels | None

    def __len__(self) -> int:
        """Pictures in it."""
        return len(self.images)

    def rows(self, order: npt.NDArray[np.int64]) -> "Part":
        """The part that holds these rows only."""
        return Part(self.images[order], None if self.labels is None else self.labels[order])


def all_over(n: int, *, most: int) -> npt.NDArray[np.int64]:
    """At most so many of n rows, evenly from the first to the last, as a part may be sorted by class."""
    return np.linspace(0, n - 1, min(n, most)).round().astype(np.int64)


def rows_at_once(image_shape: tuple[int, ...], *, most: int) -> int:
    """How many pictures of a shape (h, w, c) networks look at together where no gradient is kept: fewer of large ones,
    whose feature maps take some hundred times their memory.
    """
    return max(1, min(most, _VALUES_AT_ONCE // math.prod(image_shape)))


# Parts go by the names `train`, `test` and `validation`; people spell them in these ways.
PART_NAMES = {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation"}

# By name: train always, test and validation where the source has them.
Parts = dict[str, Part]
