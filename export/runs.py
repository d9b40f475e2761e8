"""Which runs a proof takes: numbers of rows at each size, within a budget of pixels."""

import math

from service.manifest import ImageSpec

# Odd and even, one and many: what a batch may be.
BATCH_ROWS = (1, 2, 7, 64)
MAX_RUN_PIXELS = 2_000_000
# More than this no proof asks for, so a manifest that does is wrong.
LARGEST_RUN_PIXELS = 2**25

# Rows, height and width.
Shape = tuple[int, int, int]


def shapes(image: ImageSpec, *, max_run_pixels: int) -> tuple[Shape, ...]:
    """The runs that a model is measured at, size by size: those within the budget, and one row of the default size.

    Where sizes are open, these are the smallest, one that is not square, at two rows, and the default; a largest side
    of one stride leaves none that is not square.
    """
    default = image.default_shape[:2]
    rows_of: dict[tuple[int, int], tuple[int, ...]] = {default: BATCH_ROWS}
    if image.max_side is not None:
        stride, side = image.stride, default[0]
        half = math.ceil(side / stride / 2) * stride
        oblong = (half, side) if half < side else (stride, 2 * stride)
        smallest = {(stride, stride): BATCH_ROWS}
        rows_of = smallest | ({oblong: (2,)} if max(oblong) <= image.max_side else {}) | rows_of
    return tuple(
        (rows, height, width)
        for (height, width), numbers_of_rows in rows_of.items()
        for rows in numbers_of_rows
        if rows * height * width <= max_run_pixels or (rows == 1 and (height, width) == default)
    )
