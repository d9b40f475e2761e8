"""What a file says of its picture before anything is made of it: how many pixels, and that reading on costs no more."""

import struct
from collections.abc import Callable
from math import ceil

from service.errors import BadBody, too_large

# Cameras and editors write ten or so before the pixels, and up to 255 for a colour profile.
_MOST_SEGMENTS = 1_000
# Pillow puts them together one by one. One holds what cameras say.
_MOST_EXIF_SEGMENTS = 64
# Bytes between segments, which Pillow passes over one by one.
_MOST_BETWEEN = 2**16
# libjpeg walks through the whole picture for each scan, of which encoders make ten or so.
_MOST_SCANS = 100

# Of one field of a TIFF. Pillow makes an object of each number, and some of each strip and tile.
_MOST_NUMBERS = 2**16
_MOST_FIELDS = 2**12
# A tile may be larger than the picture, whose edges it then crosses; all tiles together are not much larger.
_TILED_TIMES = 4

_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 322, 323
_SIDES = frozenset({_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT})
_PLACES = frozenset({273, 279, 324, 325})  # of strips and tiles, and their lengths
_BYTES = frozenset({1, 2, 7})  # types of fields that stay bytes: BYTE, ASCII, UNDEFINED
_SHORT, _LONG = 3, 4


def pixels(data: bytes, *, where: str, max_pixels: int) -> int:
    """Pixels of the picture in a file, 0 where it does not say so in its first bytes.

    Raises:  BadBody where the file would make its reader work for more than its pixels, TooLarge where it would make
             room for too many of them
    """
    for opening, read in _READERS.items():
        if data.startswith(opening):
            return read(data, where, max_pixels)
    return 0


def _jpeg(data: bytes, where: str, _max_pixels: int) -> int:
    """Walks from segment to segment as Pillow does.

    Source:  ITU-T T.81, annex B
    """
    at, between, segments, exif, found = 2, 0, 0, 0, 0
    while segments <= _MOST_SEGMENTS and exif <= _MOST_EXIF_SEGMENTS and between <= _MOST_BETWEEN:
        start = data.find(b"\xff", at)
        if start < 0 or start + 1 >= len(data):
            return found  # Pillow finds that it ends
        between += start - at
        marker = data[start + 1]
        if marker in (0x00, 0xFF):  # no marker, but what may stand before one
            between += 1
            at = start + 1 + (marker == 0x00)
            continue
        segments += 1
        if marker == 0xDA:
            _require_few_scans(data, where)
            return found
        if 0xD0 <= marker <= 0xD9:
            at = start + 2
            continue
        length = int.from_bytes(data[start + 2 : start + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = int.from_bytes(data[start + 5 : start + 7]), int.from_bytes(data[start + 7 : start + 9])
            found = height * width
        exif += marker == 0xE1 and data.startswith(b"Exif", start + 4)
        at = start + 2 + max(length, 2)
    raise BadBody(
        f"{where}: got a JPEG whose header has no end in sight, expected its picture after {_MOST_SEGMENTS}"
        " segments at most"
    )


def _require_few_scans(data: bytes, where: str) -> None:
    # With the lengths that the header of a scan can have: what is no scan, as in a film behind the picture, has others.
    headers = (b"\xff\xda\x00" + rest for rest in (b"\x08\x01", b"\x0a\x02", b"\x0c\x03", b"\x0e\x04"))
    scans = sum(data.count(header) for header in headers)
    if scans > _MOST_SCANS:
        raise BadBody(f"{where}: got a JPEG of {scans} scans, expected at most {_MOST_SCANS}")


def _tiff(data: bytes, where: str, max_pixels: int) -> int:
    """Reads the fields of the first picture.

    Source:  TIFF 6.0, Adobe 1992, section 2; BigTIFF as libtiff has it
    """
    if data.startswith(b"MM\x00\x2b"):  # of which Pillow reads other fields than libtiff
        raise BadBody(f"{where}: got a BigTIFF in big-endian order, expected little-endian")
    order = "<" if data.startswith(b"II") else ">"
    is_big = data[2] == 43
    start, count, field = ("Q", "Q", "HHQ8s") if is_big else ("I", "H", "HHI4s")
    try:
        (at,) = struct.unpack_from(order + start, data, 8 if is_big else 4)
        (n_fields,) = struct.unpack_from(order + count, data, at)
        if n_fields > _MOST_FIELDS:
            raise BadBody(f"{where}: got a TIFF of {n_fields} fields, expected at most {_MOST_FIELDS}")
        at += struct.calcsize(order + count)
        size = struct.calcsize(order + field)
        fields = [struct.unpack_from(order + field, data, at + size * index) for index in range(n_fields)]
    except struct.error:
        return 0  # Pillow finds that it ends
    sides: dict[int, int] = {}
    for tag, kind, number, value in fields:
        if number > _MOST_NUMBERS and (tag in _PLACES or kind not in _BYTES):
            raise BadBody(f"{where}: got a TIFF with {number} numbers in one field, expected at most {_MOST_NUMBERS}")
        if tag in _SIDES:
            if kind not in (_SHORT, _LONG) or number != 1 or tag in sides:
                raise BadBody(f"{where}: got a TIFF whose sides are not told once each, as numbers of 16 or 32 bits")
            (sides[tag],) = struct.unpack_from(order + ("H" if kind == _SHORT else "I"), value)
    width, height = sides.get(_WIDTH, 0), sides.get(_HEIGHT, 0)
    tile_width, tile_height = sides.get(_TILE_WIDTH, 0), sides.get(_TILE_HEIGHT, 0)
    if tile_width and tile_height:
        tiled = ceil(width / tile_width) * tile_width * ceil(height / tile_height) * tile_height
        if tiled > _TILED_TIMES * max_pixels:
            raise BadBody(f"{where}: got a TIFF whose tiles are far larger than its picture")
    return width * height


def _webp(data: bytes, where: str, max_pixels: int) -> int:
    """The canvas, for which Pillow makes room at once."""
    canvas = _canvas_of_webp(data)
    if canvas > max_pixels:
        raise too_large(where, got=canvas, limit=max_pixels, unit="pixels")
    return canvas


def _canvas_of_webp(data: bytes) -> int:
    """Its pixels.

    Source:  RFC 9649
    """
    kind = data[8:16]
    if kind == b"WEBPVP8X":
        return (1 + int.from_bytes(data[24:27], "little")) * (1 + int.from_bytes(data[27:30], "little"))
    if kind == b"WEBPVP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (1 + (bits & 0x3FFF)) * (1 + (bits >> 14 & 0x3FFF))
    if kind == b"WEBPVP8 ":
        width, height = int.from_bytes(data[26:28], "little"), int.from_bytes(data[28:30], "little")
        return (width & 0x3FFF) * (height & 0x3FFF)
    return 0


def _gif(data: bytes, _where: str, _max_pixels: int) -> int:
    return int.from_bytes(data[6:8], "little") * int.from_bytes(data[8:10], "little")


def _bmp(data: bytes, _where: str, _max_pixels: int) -> int:
    if int.from_bytes(data[14:18], "little") == 12:
        return int.from_bytes(data[18:20], "little") * int.from_bytes(data[20:22], "little")
    width, height = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (18, 22))
    return abs(width * height)


def _png(data: bytes, _where: str, _max_pixels: int) -> int:
    return int.from_bytes(data[16:20]) * int.from_bytes(data[20:24]) if data[12:16] == b"IHDR" else 0


_READERS: dict[bytes, Callable[[bytes, str, int], int]] = {
    b"\x89PNG\r\n\x1a\n": _png,
    b"\xff\xd8": _jpeg,
    b"RIFF": _webp,
    b"GIF8": _gif,
    b"BM": _bmp,
    b"II\x2a\x00": _tiff,
    b"MM\x00\x2a": _tiff,
    b"II\x2b\x00": _tiff,
    b"MM\x00\x2b": _tiff,
    # As Pillow takes them too.
    b"II\x00\x2a": _tiff,
    b"MM\x2a\x00": _tiff,
}
