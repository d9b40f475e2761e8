"""Sheets: every picture whole, nothing cut, no wider than a card."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image, ImageFont

from model.report.sheets import Sheet, draw, grid, tile_size, to_png

SIZES = [
    (8, 8, 1),
    (8, 8, 3),
    (9, 6, 1),
    (28, 28, 1),
    (32, 32, 3),
    (64, 64, 1),
    (8, 128, 1),
    (128, 16, 3),
    (256, 256, 3),
]


def _sheet(image_shape: tuple[int, int, int], *, columns: int, rows: int) -> Sheet:
    """Tiles of one shade each, none of them paper or ink, with words on all sides."""
    shades = np.arange(60, 60 + rows * columns, dtype=np.uint8).reshape(rows, columns, 1, 1, 1)
    return Sheet(
        title="A title",
        note="A note that is longer than the sheet is wide, " * 5,
        tiles=np.broadcast_to(shades, (rows, columns, *image_shape)),
        row_labels=[f"z{row} · 2.31 nats" for row in range(rows)],
        column_labels=[f"α = {column}" for column in range(columns)],
        captions=[[f"{column}.25" for column in range(columns)]] * (rows // 2),
        group=2,
        columns_apart=(1, columns - 1),
    )


@pytest.mark.parametrize("image_shape", SIZES)
def test_every_picture_is_whole_and_nothing_touches_the_margin(image_shape: tuple[int, int, int]) -> None:
    sheet = _sheet(image_shape, columns=13, rows=4)
    picture = draw(sheet)
    assert picture.mode == ("L" if image_shape[2] == 1 else "RGB")
    assert picture.width <= 1200
    shown = np.asarray(picture.convert("L"))
    inner = np.zeros(shown.shape, np.bool_)
    inner[12:-12, 12:-12] = True
    assert (shown[~inner] == 255).all()
    # White pictures leave the words alone; what differs from them is picture, and not covered by a word.
    words = np.asarray(draw(dataclasses.replace(sheet, tiles=np.full_like(sheet.tiles, 255))).convert("L"))
    areas = np.bincount(shown[shown != words], minlength=256)[sheet.tiles[..., 0, 0, 0].flatten()]
    assert (areas == areas[0]).all()
    assert areas[0] > 60
    assert areas.sum() == (shown != words).sum()


@pytest.mark.parametrize("image_shape", SIZES)
def test_small_pictures_are_enlarged_by_whole_pixels_and_large_ones_keep_their_proportions(
    image_shape: tuple[int, int, int],
) -> None:
    height, width = tile_size(image_shape)
    assert height % image_shape[0] == width % image_shape[1] == 0
    assert height // image_shape[0] == width // image_shape[1]
    assert tile_size((512, 256, 3)) == (256, 128)
    assert tile_size((256, 256, 3), room=80) == (80, 80)
    assert tile_size((28, 28, 1), room=80) == (56, 56)


def test_an_enlarged_picture_has_its_own_pixels_and_no_others() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (1, 1, 8, 8, 3), np.uint8)
    picture = np.asarray(draw(Sheet(title="", note="", tiles=tiles)))
    height, width = tile_size((8, 8, 3))
    # A tile stands at the left margin, above the lower one.
    found = picture[-20 - height : -20, 20 : 20 + width]
    assert np.array_equal(found, tiles[0, 0].repeat(height // 8, 0).repeat(width // 8, 1))


@pytest.mark.parametrize("image_shape", SIZES)
@pytest.mark.parametrize(("n", "tall"), [(1, 1), (5, 2), (1000, 1), (1000, 2)])
def test_a_grid_fits_on_a_sheet_and_asks_for_no_more_pictures_than_there_are(
    image_shape: tuple[int, int, int], n: int, tall: int
) -> None:
    columns, rows = grid(image_shape, n=n, most_rows=8, tall=tall)
    assert 1 <= columns * rows <= n
    assert rows <= 8
    height, width = tile_size(image_shape)
    assert columns * width <= 1200
    assert rows == 1 or rows * tall * height <= 1100


def test_every_sign_on_a_sheet_has_a_glyph() -> None:
    import matplotlib

    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 13)
    missing = bytes(font.getmask("\U000f1234"))
    assert all(bytes(font.getmask(sign)) != missing for sign in "α₁₂−·, ()")


def test_a_file_is_png_and_the_same_every_time() -> None:
    sheet = _sheet((8, 8, 1), columns=3, rows=2)
    assert to_png(sheet) == to_png(sheet)
    assert Image.open(io.BytesIO(to_png(sheet))).format == "PNG"
