"""The fields of a TIFF, looked through before Pillow and libtiff make anything of them."""

import struct
from itertools import pairwise
from math import ceil
from typing import NamedTuple

from service.errors import BadBody, found_at

# Of one field. Pillow makes an object of each number, and some of each strip and tile.
MOST_NUMBERS = 2**16
# Of a field that tells one number, or one for each sample.
_MOST_SAMPLES = 2**8
# Of one directory; cameras and microscopes write a hundred or two.
_MOST_FIELDS = 2**9
# A tile may be larger than the picture, whose edges it then crosses; all tiles together are not much larger, or hold no
# more than a few of those of 2048 x 2048 that large pictures and their small previews have.
_TILED_TIMES, _TILED_PIXELS = 4, 2**24
# A line of pixels that are not compressed is gathered piece by piece until it is whole.
MOST_LINE_BYTES = 2**22

_WIDTH, _HEIGHT, _BITS, _COMPRESSION = 256, 257, 258, 259
_STRIPS, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANAR = 273, 277, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 322, 323, 324, 325
_SIDES = (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT)
_PLACES = frozenset({_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES})
# Of which Pillow takes the first that it can read, and libtiff one of its own choice.
_ONCE = _PLACES | {*_SIDES, _BITS, _COMPRESSION, _SAMPLES, _ROWS, _PLANAR}
_INNER = (34665, 34853, 40965)  # directories of their own: EXIF, GPS, interoperability
_NONE = 1  # of compressions

# Types that stay bytes: BYTE, ASCII, UNDEFINED; and those that say how many pixels or where.
_BYTES = frozenset({1, 2, 7})
_SHORT, _LONG, _LONG8 = 3, 4, 16
_FORMATS = {1: "B", _SHORT: "H", _LONG: "I", _LONG8: "Q"}
# Bytes of a number of each type that Pillow knows.
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}


class _Field(NamedTuple):
    kind: int
    number: int
    at: int
    """Where its numbers stand."""


class _Tiff:
    """A file and how it is read."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data, self._where = data, where
        self._order = "<" if data.startswith(b"II") else ">"
        self.is_big = data[2] == 43
        self._directories: dict[int, dict[int, _Field]] = {}
        self._held_bytes = 0

    def first(self) -> dict[int, _Field]:
        """The fields of the first picture, those of its inner directories looked through too.

        Raises:  BadBody
        """
        found = self._fields(self._unpack("Q", 8) if self.is_big else self._unpack("I", 4))
        exif = self._fields(*self.few(found.get(_INNER[0]))[:1])
        for tag in _INNER[1:]:
            self._fields(*(self.few(found.get(tag)) or self.few(exif.get(tag)))[:1])
        return found

    def few(self, field: _Field | None) -> tuple[int, ...]:
        """As `numbers`, of a field that tells one for each sample at most.

        Raises:  BadBody
        """
        return self.numbers(field, most=_MOST_SAMPLES)

    def numbers(self, field: _Field | None, *, most: int = MOST_NUMBERS) -> tuple[int, ...]:
        """Those of a field, as far as it is one of whole numbers, and there.

        Raises:  BadBody if they would be a great many objects
        """
        form = _FORMATS.get(field.kind) if field else None
        if field is None or form is None:
            return ()
        if field.number > most:
            raise self._too_many(field.number, most)
        try:
            return struct.unpack_from(f"{self._order}{field.number}{form}", self._data, field.at)
        except (struct.error, OverflowError):  # the latter of places beyond 2^63
            return ()

    def refused(self, got: str, expected: str) -> BadBody:
        """What is wrong with it."""
        return found_at(self._where, BadBody, got=f"a TIFF {got}", expected=expected)

    def _too_many(self, number: int, most: int) -> BadBody:
        return self.refused(f"with {number} numbers in one field", f"at most {most}")

    def _unpack(self, form: str, at: int) -> int | None:
        try:
            (value,) = struct.unpack_from(self._order + form, self._data, at)
        except (struct.error, OverflowError):
            return None
        return int(value)

    def _fields(self, at: int | None = None) -> dict[int, _Field]:
        """The fields of a directory, as many as are there; Pillow takes those of one that is cut short."""
        count = None if at is None else self._unpack("Q" if self.is_big else "H", at)
        if at is None or count is None:
            return {}
        if at in self._directories:
            return self._directories[at]
        if count > _MOST_FIELDS:
            raise self.refused(f"of {count} fields", f"at most {_MOST_FIELDS}")
        found = self._directories[at] = {}
        head, inline = (8, 8) if self.is_big else (2, 4)
        entry = struct.Struct(self._order + ("HHQQ" if self.is_big else "HHII"))
        start = at + head
        there = min(count, (len(self._data) - start) // entry.size)
        entries = entry.iter_unpack(self._data[start : start + entry.size * there])
        for place, (tag, kind, number, value) in enumerate(entries):
            if number > MOST_NUMBERS and (tag in _PLACES or kind not in _BYTES):
                raise self._too_many(number, MOST_NUMBERS)
            if tag in found and tag in _ONCE:
                raise self.refused("that tells its sides or its places twice", "them once")
            n_bytes = _TYPE_BYTES.get(kind, 0) * number
            if n_bytes <= inline:
                value = start + entry.size * (place + 1) - inline
            elif value + n_bytes <= len(self._data):
                self._held_bytes += n_bytes
            found[tag] = _Field(kind, number, value)
        if self._held_bytes > len(self._data):
            raise self.refused(f"of {self._held_bytes} bytes in fields", f"no more than its {len(self._data)}")
        return found


def pixels(data: bytes, where: str, max_pixels: int) -> int:
    """Pixels of the first picture, or of a tile of it where that is larger.

    Raises:  BadBody where reading on would cost more than they do
    Source:  TIFF 6.0, Adobe 1992; BigTIFF as libtiff has it
    """
    tiff = _Tiff(data, where)
    if data.startswith(b"MM\x00\x2b"):  # of which Pillow reads other fields than libtiff
        raise tiff.refused("of 64 bits in big-endian order", "little-endian")
    fields = tiff.first()
    whole = {_SHORT, _LONG, _LONG8} if tiff.is_big else {_SHORT, _LONG}
    for tag in _SIDES:
        if tag in fields and (fields[tag].kind not in whole or fields[tag].number != 1):
            raise tiff.refused("whose sides are no numbers of 16 or 32 bits", "one each")

    def number(tag: int, default: int) -> int:
        return max(tiff.few(fields.get(tag)) or (default,))

    width, height = number(_WIDTH, 0), number(_HEIGHT, 0)
    tile = number(_TILE_WIDTH, 0), number(_TILE_HEIGHT, 0)
    has_tiles = all(tile)
    block_width, block_height = tile if has_tiles else (width, min(number(_ROWS, height) or height, height))
    across, down = (
        ceil(side / block) if block else 0 for side, block in ((width, block_width), (height, block_height))
    )
    tiled = across * block_width * down * block_height
    if has_tiles and (
        tiled > _TILED_TIMES * width * height + _TILED_PIXELS
        or block_width * block_height > max(max_pixels, _TILED_PIXELS)
    ):
        raise tiff.refused("whose tiles are far larger than its picture", "tiles that it fills")
    if number(_COMPRESSION, _NONE) == _NONE and width * height <= max_pixels:  # more of them Pillow refuses
        _require_plain_blocks(
            tiff,
            offsets=tiff.numbers(fields.get(_TILES if has_tiles else _STRIPS)),
            most=across * down * (number(_SAMPLES, 1) if number(_PLANAR, 1) == 2 else 1),
            line_bytes=ceil(block_width * number(_BITS, 1) / 8),
            samples=number(_SAMPLES, 1),
        )
    return max(width * height, block_width * block_height)


def _require_plain_blocks(tiff: _Tiff, *, offsets: tuple[int, ...], most: int, line_bytes: int, samples: int) -> None:
    """Nothing, if strips or tiles that are not compressed are no more than there are, each of a line or more: Pillow
    reads from one to where the next begins, and puts together what makes no line.
    """
    if line_bytes * samples > MOST_LINE_BYTES:
        raise tiff.refused(f"of lines of {line_bytes * samples} bytes", f"at most {MOST_LINE_BYTES}")
    if len(offsets) > most:
        raise tiff.refused(f"of {len(offsets)} strips or tiles", f"{most}, which its picture fills")
    if any(after - before < line_bytes for before, after in pairwise(sorted(set(offsets)))):
        raise tiff.refused("whose strips or tiles lie upon each other", "each to have room for a line")
