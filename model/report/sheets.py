"""A sheet: pictures in rows on white paper, small ones enlarged, with the words that say what they are."""

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from model.parts import Images

# A card shows a sheet of this width at 100 % on most screens.
_WIDTH_PIXELS = 1200
_HEIGHT_PIXELS = 1100
_NOTE_PIXELS = 560
# Small pictures are enlarged to about this edge; large ones stay as they are, up to the other.
_USUAL_EDGE_PIXELS, _LARGEST_EDGE_PIXELS = 72, 256
_ROW_LABEL_PIXELS = 72
_COLUMNS = 12

_PAPER, _INK, _FAINT = "#ffffff", "#222222", "#6b6b6b"
_MARGIN_PIXELS = 20
_GAP_PIXELS, _WIDE_GAP_PIXELS, _NOTE_GAP_PIXELS = 3, 14, 10
_TITLE_PIXELS, _LINE_PIXELS = 24, 19
_TITLE_SIZE, _TEXT_SIZE = 17, 13


@dataclass(frozen=True, eq=False)
class Sheet:
    """Pictures in rows, and words around them.

    Shapes:  tiles (rows, columns, h, w, c); row_labels (rows,), column_labels (columns,) and captions
             (rows / group, columns), or none of them
    """

    title: str
    note: str
    """What is shown and how it was made, in a sentence or two."""
    tiles: Images
    row_labels: Sequence[str] = ()
    column_labels: Sequence[str] = ()
    captions: Sequence[Sequence[str]] = ()
    """Below the last row of each group, one a column."""
    group: int = 1
    """Rows that belong together; a wider gap parts the groups where there is more than one row in each."""
    columns_apart: Collection[int] = ()
    """Columns that have a wider gap to their left."""


def grid(image_shape: tuple[int, int, int], *, n: int, most_rows: int, tall: int = 1) -> tuple[int, int]:
    """Columns and rows that fit on a sheet, at most n places; a place is `tall` pictures high."""
    height, width = tile_size(image_shape)
    room = _WIDTH_PIXELS - 2 * _MARGIN_PIXELS - _ROW_LABEL_PIXELS
    columns = min(_COLUMNS, n, room // (width + _GAP_PIXELS))
    rows = min(most_rows, n // columns, _HEIGHT_PIXELS // (tall * (height + _GAP_PIXELS)))
    return columns, max(1, rows)


def tile_size(image_shape: tuple[int, int, int], *, room: int = _LARGEST_EDGE_PIXELS) -> tuple[int, int]:
    """Height and width of one picture on a sheet: enlarged by whole pixels, or made smaller to fit."""
    height, width, _ = image_shape
    edge = max(height, width)
    enlarged = min(max(1, round(_USUAL_EDGE_PIXELS / edge)), _LARGEST_EDGE_PIXELS // edge, room // width)
    if enlarged:
        return height * enlarged, width * enlarged
    ratio = min(_LARGEST_EDGE_PIXELS / edge, room / width)
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def to_png(sheet: Sheet) -> bytes:
    """The sheet as a file."""
    file = io.BytesIO()
    draw(sheet).save(file, "PNG", optimize=True)
    return file.getvalue()


def draw(sheet: Sheet) -> Image.Image:
    """The sheet as a picture, at most 1,200 pixels wide; grey pictures make a grey one."""
    place = _layout(sheet)
    paper = Image.new("L" if sheet.tiles.shape[-1] == 1 else "RGB", (place.sheet_width, place.sheet_height), _PAPER)
    for row, column in np.ndindex(sheet.tiles.shape[:2]):
        tile = _resized(sheet.tiles[row, column], height=place.height, width=place.width)
        paper.paste(tile, (place.centres[column] - place.width // 2, place.tops[row]))
    _write(ImageDraw.Draw(paper), sheet, place)
    return paper


@dataclass(frozen=True)
class _Layout:
    """Where things stand on a sheet, in pixels."""

    height: int
    width: int
    """Of one tile."""
    note: Sequence[str]
    """In lines."""
    centres: Sequence[int]
    """Of columns."""
    tops: Sequence[int]
    """Of rows."""
    sheet_height: int
    sheet_width: int


def _layout(sheet: Sheet) -> _Layout:
    rows, columns = sheet.tiles.shape[:2]
    left = _MARGIN_PIXELS + (_widest(sheet.row_labels) + _WIDE_GAP_PIXELS if sheet.row_labels else 0)
    room = _WIDTH_PIXELS - left - _MARGIN_PIXELS - len(sheet.columns_apart) * _WIDE_GAP_PIXELS
    height, width = tile_size(sheet.tiles.shape[2:], room=room // columns - _GAP_PIXELS)
    # Words may be wider than a narrow picture, and a line of them higher than a flat one.
    words = [*sheet.column_labels, *(caption for captions in sheet.captions for caption in captions)]
    column_width, row_height = max(width, _widest(words)), max(height, _LINE_PIXELS)
    lefts = [left + place for place in _places(columns, column_width, apart=sheet.columns_apart)]
    right = max(lefts[-1] + column_width, _MARGIN_PIXELS + _NOTE_PIXELS)
    note = _lines(sheet.note, width=right - _MARGIN_PIXELS)
    top = _MARGIN_PIXELS + _TITLE_PIXELS + (len(note) + bool(sheet.column_labels)) * _LINE_PIXELS + _NOTE_GAP_PIXELS
    starts = range(sheet.group, rows, sheet.group) if sheet.group > 1 else ()
    caption_height = _LINE_PIXELS if sheet.captions else 0
    tops = [
        top + place + row // sheet.group * caption_height
        for row, place in enumerate(_places(rows, row_height, apart=starts))
    ]
    return _Layout(
        height=height,
        width=width,
        note=note,
        centres=[place + column_width // 2 for place in lefts],
        tops=tops,
        sheet_height=tops[-1] + row_height + caption_height + _MARGIN_PIXELS,
        sheet_width=right + _MARGIN_PIXELS,
    )


def _write(pen: ImageDraw.ImageDraw, sheet: Sheet, place: _Layout) -> None:
    text = _font(_TEXT_SIZE)
    pen.text((_MARGIN_PIXELS, _MARGIN_PIXELS), sheet.title, _INK, _font(_TITLE_SIZE, bold=True), anchor="lt")
    for number, line in enumerate(place.note):
        pen.text((_MARGIN_PIXELS, _MARGIN_PIXELS + _TITLE_PIXELS + number * _LINE_PIXELS), line, _FAINT, text)
    for centre, label in zip(place.centres, sheet.column_labels, strict=False):
        pen.text((centre, place.tops[0] - 6), label, _INK, text, anchor="ms")
    for top, label in zip(place.tops, sheet.row_labels, strict=False):
        right = place.centres[0] - place.width // 2 - _WIDE_GAP_PIXELS // 2
        pen.text((right, top + place.height // 2), label, _INK, text, anchor="rm")
    for number, captions in enumerate(sheet.captions):
        below = place.tops[(number + 1) * sheet.group - 1] + place.height
        for centre, caption in zip(place.centres, captions, strict=True):
            pen.text((centre, below + 5), caption, _FAINT, text, anchor="ma")


def _places(count: int, length: int, *, apart: Collection[int]) -> list[int]:
    """Where each of some equal lengths starts, with a gap after each, a wider one before those that stand apart."""
    gaps = [_WIDE_GAP_PIXELS if index in apart else _GAP_PIXELS for index in range(1, count)]
    return [index * length + sum(gaps[:index]) for index in range(count)]


def _resized(tile: Images, *, height: int, width: int) -> Image.Image:
    picture = Image.fromarray(tile[:, :, 0] if tile.shape[2] == 1 else tile)
    # Enlarging is by whole pixels, so that it invents nothing between them.
    way = Image.Resampling.LANCZOS if width < picture.width else Image.Resampling.NEAREST
    return picture.resize((width, height), way)


def _lines(text: str, *, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if _widest([longer]) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _widest(words: Sequence[str]) -> int:
    return max((round(_font(_TEXT_SIZE).getlength(word)) for word in words), default=0)


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib  # heavy, and only here for its DejaVu Sans, the font of the charts

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
