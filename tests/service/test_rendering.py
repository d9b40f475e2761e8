"""Pictures go out: against Pillow's reading of them and against pixels worked by hand."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service import rendering
from service.budget import LOOP_BUDGET_US
from tests.service.wire import assert_near, frames, opened, pixels, tiles


@settings(max_examples=40)
@given(
    n=st.integers(1, 12),
    columns=st.integers(1, 12),
    scale=st.integers(1, 3),
    shape=st.sampled_from([(2, 3, 3), (3, 2, 1)]),
)
def test_a_grid_shows_every_picture_in_its_place(n: int, columns: int, scale: int, shape: tuple[int, int, int]) -> None:
    several = pixels(n, shape)
    canvas = opened(
        rendering.render(several, "png", columns=min(n, columns), scale=scale, quality=90, frame_ms=0), shape[-1]
    )
    height, width, channels = shape[0] * scale, shape[1] * scale, shape[2]
    lines = -(-n // min(n, columns))
    assert canvas.shape == (lines * height, min(n, columns) * width, channels)
    for index in range(n):
        y, x = divmod(index, min(n, columns))
        cell = canvas[y * height : (y + 1) * height, x * width : (x + 1) * width]
        for dy in range(scale):
            for dx in range(scale):
                np.testing.assert_array_equal(cell[dy::scale, dx::scale], several[index])
    np.testing.assert_array_equal(tiles(canvas, (height, width, channels), n), rendering.enlarge(several, scale))


def test_the_places_that_no_picture_fills_are_black() -> None:
    canvas = rendering.grid(np.full((5, 2, 2, 3), 255, np.uint8), 3)
    assert canvas.shape == (4, 6, 3)
    assert not canvas[2:, 4:].any()
    assert canvas[:2].min() == canvas[2:, :4].min() == 255


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (2, 2), (3, 2), (4, 2), (5, 3), (9, 3), (10, 4), (16, 4), (17, 5)])
def test_a_grid_is_near_square(n: int, columns: int) -> None:
    assert rendering.near_square(n) == columns


def test_near_square_is_never_higher_than_wide_nor_wider_by_two_lines() -> None:
    for n in range(1, 500):
        columns = rendering.near_square(n)
        assert 0 <= columns - -(-n // columns) <= 1


def test_a_grid_of_small_pngs_fits_the_event_loops_budget_and_an_animation_never_does() -> None:
    assert rendering.cost_us(16 * 28 * 28, "png") < LOOP_BUDGET_US
    assert rendering.cost_us(16 * 28 * 28 * 4**2, "png") > LOOP_BUDGET_US
    assert rendering.cost_us(1, "gif") > LOOP_BUDGET_US


@pytest.mark.parametrize("encoding", ["jpeg", "webp"])
def test_a_lossy_still_is_near_and_nearer_with_quality(encoding: rendering.Encoding) -> None:
    ramp = np.linspace(0, 255, 32 * 32, dtype=np.uint8).reshape(1, 32, 32, 1)

    def loss(quality: int) -> float:
        file = rendering.render(ramp, encoding, columns=1, scale=1, quality=quality, frame_ms=0)
        return float(np.abs(opened(file, 1).astype(int) - ramp[0]).mean())

    assert loss(90) < 2
    assert loss(90) < loss(1)


@pytest.mark.parametrize("encoding", ["gif", "apng"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_animation_has_a_frame_for_each_picture(encoding: rendering.Encoding, channels: int) -> None:
    several = pixels(5, (6, 5, channels))
    file = rendering.render(several, encoding, columns=1, scale=2, quality=90, frame_ms=40)
    # A frame of 30 colours fits a GIF's palette.
    assert_near(frames(file, channels), rendering.enlarge(several, 2), levels=0)
    with Image.open(BytesIO(file)) as image:
        assert image.n_frames == 5
        assert image.info["duration"] == 40
        assert image.info["loop"] == 0


@pytest.mark.parametrize(("encoding", "side"), [("webp", 16383), ("jpeg", 65500)])
def test_a_format_writes_its_longest_side_and_no_longer_one(encoding: rendering.Encoding, side: int) -> None:
    assert rendering.LONGEST_SIDE[encoding] == side
    longest = np.zeros((side, 1, 1, 1), np.uint8)
    file = rendering.render(longest, encoding, columns=side, scale=1, quality=1, frame_ms=0)
    assert opened(file, 1).shape == (1, side, 1)
    longer = np.zeros((side + 1, 1, 1, 1), np.uint8)
    with pytest.raises((OSError, ValueError)):
        rendering.render(longer, encoding, columns=1, scale=1, quality=1, frame_ms=0)
    assert rendering.render(longer, "png", columns=1, scale=1, quality=1, frame_ms=0)
