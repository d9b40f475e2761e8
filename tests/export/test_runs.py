"""Which runs a proof takes."""

import pytest

from export.runs import MAX_RUN_PIXELS, shapes
from service.manifest import ImageSpec

FIXED = ImageSpec(height=30, width=20, channels=1)


def opened(default_side: int, *, max_side: int | None = None) -> ImageSpec:
    most = max_side or 2 * default_side
    return ImageSpec(height=None, width=None, channels=3, stride=8, default_side=default_side, max_side=most)


def test_small_pictures_run_at_1_2_7_and_64_rows() -> None:
    assert shapes(FIXED, max_run_pixels=MAX_RUN_PIXELS) == ((1, 30, 20), (2, 30, 20), (7, 30, 20), (64, 30, 20))


@pytest.mark.parametrize(
    ("budget", "rows"), [(64 * 600, [1, 2, 7, 64]), (64 * 600 - 1, [1, 2, 7]), (7 * 600 - 1, [1, 2]), (1, [1])]
)
def test_a_run_has_no_more_pixels_than_the_budget_but_one_row_always_runs(budget: int, rows: list[int]) -> None:
    assert [shape[0] for shape in shapes(FIXED, max_run_pixels=budget)] == rows


def test_open_sizes_run_at_the_smallest_at_one_that_is_not_square_and_at_the_default() -> None:
    found = shapes(opened(256), max_run_pixels=MAX_RUN_PIXELS)
    smallest, default = [(rows, 8, 8) for rows in (1, 2, 7, 64)], [(rows, 256, 256) for rows in (1, 2, 7)]
    assert found == (*smallest, (2, 128, 256), *default)


def test_every_side_is_a_multiple_of_the_stride() -> None:
    assert {shape[1:] for shape in shapes(opened(24), max_run_pixels=MAX_RUN_PIXELS)} == {(8, 8), (16, 24), (24, 24)}


def test_of_sizes_above_the_budget_the_default_alone_runs() -> None:
    assert shapes(opened(256), max_run_pixels=100) == ((1, 8, 8), (1, 256, 256))
    assert shapes(opened(256), max_run_pixels=1) == ((1, 256, 256),)


def test_a_default_of_one_place_is_measured_once_and_beside_it_one_that_is_not_square() -> None:
    square = tuple((rows, 8, 8) for rows in (1, 2, 7, 64))
    assert shapes(opened(8), max_run_pixels=MAX_RUN_PIXELS) == (*square, (2, 8, 16))
    assert shapes(opened(8, max_side=8), max_run_pixels=MAX_RUN_PIXELS) == square
