"""What a file says of its picture before anything is made of it: how many pixels, and that reading on costs no more."""

import re
from collections.abc import Callable
from functools import partial

from service import tiff
from service.errors import BadBody, found_at, too_large

# Cameras and editors write ten or so before the pixels, and up to 255 for a colour profile.
_MOST_SEGMENTS = 1_000
# What cameras and editors say of a picture, which Pillow takes apart and puts together: bytes, and what a short one
# counts as, since each is put to all before.
_MOST_DESCRIBED, _LEAST_DESCRIBED = 2**20, 2**14
# Bytes between segments, which Pillow passes over one by one.
_MOST_BETWEEN = 2**12
_FILL = re.compile(rb"\xff{2,}")
# libjpeg walks through the whole picture for each scan, of which encoders make ten or so.
_MOST_SCANS = 100

# Of a PNG; the pixels alone come in thousands.
_MOST_CHUNKS = 2**16
# Of those that Pillow inflates, up to a megabyte each, and does not always count; editors write a handful.
_MOST_INFLATED = {b"iCCP": 1, b"zTXt": 32, b"iTXt": 32}
# Of what stands before a GIF's first picture: extensions, what is in them, and bytes between, which Pillow passes over
# one by one.
_MOST_BLOCKS = 2**12
# Pillow unpacks a BMP of runs pixel by pixel, in Python.
_MOST_RUN_PIXELS = 2**20


def pixels(data: bytes, *, where: str, max_pixels: int) -> int:
    """Pixels of the picture in a file, or of a tile that is larger, 0 where it does not say so by a header.

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
    at, between, segments, described, found = 2, 0, 0, 0, 0
    while segments <= _MOST_SEGMENTS and described <= _MOST_DESCRIBED and between <= _MOST_BETWEEN:
        start = data.find(b"\xff", at)
        if start < 0 or start + 1 >= len(data):
            return found  # Pillow finds that it ends
        marker = data[start + 1]
        if marker in (0x00, 0xFF):  # no marker, but what may stand before one
            run = _FILL.match(data, start)
            at = start + 2 if run is None else run.end() - 1
            between += at - start
            continue
        between += start - at
        segments += 1
        if marker == 0xDA:
            _require_few_scans(data, where)
            return found
        if 0xD0 <= marker <= 0xD9:
            at = start + 2
            continue
        if marker == 0xC8 or (marker >= 0xF0 and marker != 0xFE):  # inside which Pillow would look for others
            raise found_at(where, BadBody, got=f"a JPEG with the reserved marker FF{marker:02X}", expected="none")
        length = int.from_bytes(data[start + 2 : start + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xCC):
            height, width = int.from_bytes(data[start + 5 : start + 7]), int.from_bytes(data[start + 7 : start + 9])
            found = height * width
        if marker == 0xED or (marker == 0xE1 and data.startswith(b"Exif", start + 4)):
            described += max(length, _LEAST_DESCRIBED)
        at = start + 2 + max(length, 2)
    expected = (
        f"its picture after at most {_MOST_SEGMENTS} segments, with {_MOST_DESCRIBED} bytes of EXIF and resources"
    )
    raise found_at(where, BadBody, got="a JPEG whose header has no end in sight", expected=expected)


def _require_few_scans(data: bytes, where: str) -> None:
    # With the lengths that the header of a scan can have: what is no scan, as in a film behind the picture, has others.
    headers = (b"\xff\xda\x00" + rest for rest in (b"\x08\x01", b"\x0a\x02", b"\x0c\x03", b"\x0e\x04"))
    scans = sum(data.count(header) for header in headers)
    if scans > _MOST_SCANS:
        raise found_at(where, BadBody, got=f"a JPEG of {scans} scans", expected=f"at most {_MOST_SCANS}")


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


def _gif(data: bytes, where: str, _max_pixels: int) -> int:
    """Walks to the first picture as Pillow does.

    Source:  GIF89a, CompuServe 1990
    """
    screen = int.from_bytes(data[6:8], "little") * int.from_bytes(data[8:10], "little")
    flags = data[10] if len(data) > 10 else 0
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    blocks = 0
    while (opening := data[at : at + 1]) not in (b"", b",", b";"):
        at += 1
        blocks += 1
        if opening == b"!":
            at, inner = _after_extension(data, at)
            blocks += inner
        if blocks > _MOST_BLOCKS:
            got = f"a GIF of more than {_MOST_BLOCKS} blocks before its picture"
            raise found_at(where, BadBody, got=got, expected="few")
    return screen


def _after_extension(data: bytes, at: int) -> tuple[int, int]:
    """Where the extension whose label stands here ends, and its blocks, all of them or too many."""
    taken = 1  # blocks that Pillow takes before it asks whether one is empty, which is the end
    if data[at : at + 1] == b"\xfe":
        taken = 0
    elif data[at : at + 1] == b"\xff" and data[at + 2 : at + 13] == b"NETSCAPE2.0":
        taken = 2
    at, blocks = at + 1, 0
    while at < len(data) and (data[at] or blocks < taken) and blocks <= _MOST_BLOCKS:
        at += 1 + data[at]
        blocks += 1
    return at + 1, blocks


def _bmp(data: bytes, where: str, max_pixels: int) -> int:
    little = partial(int.from_bytes, byteorder="little")
    if little(data[14:18]) == 12:
        width, height, bits, compression = little(data[18:20]), little(data[20:22]), little(data[24:26]), 0
    else:
        width, height = (little(data[at : at + 4], signed=True) for at in (18, 22))
        bits, compression = little(data[28:30]), little(data[30:34])
    found, line_bytes = abs(width * height), abs(width) * bits // 8
    if found > max_pixels:  # which Pillow finds too
        return found
    if line_bytes > tiff.MOST_LINE_BYTES:
        got = f"a BMP of lines of {line_bytes} bytes"
        raise found_at(where, BadBody, got=got, expected=f"at most {tiff.MOST_LINE_BYTES}")
    if compression in (1, 2) and found > _MOST_RUN_PIXELS:
        got = f"a BMP of {found} pixels in runs"
        raise found_at(where, BadBody, got=got, expected=f"at most {_MOST_RUN_PIXELS}")
    return found


def _png(data: bytes, where: str, _max_pixels: int) -> int:
    """Walks from chunk to chunk.

    Source:  PNG, third edition, W3C 2025
    """
    at, chunks, inflated = 8, 0, dict.fromkeys(_MOST_INFLATED, 0)
    while at < len(data):
        name = data[at + 4 : at + 8]
        if name in inflated:
            inflated[name] += 1
            if inflated[name] > _MOST_INFLATED[name]:
                got = f"a PNG with {inflated[name]} chunks {name.decode()}"
                raise found_at(where, BadBody, got=got, expected=f"at most {_MOST_INFLATED[name]}")
        at += 12 + int.from_bytes(data[at : at + 4])
        chunks += 1
        if chunks > _MOST_CHUNKS:
            raise found_at(where, BadBody, got=f"a PNG of more than {_MOST_CHUNKS} chunks", expected="fewer")
    return int.from_bytes(data[16:20]) * int.from_bytes(data[20:24]) if data[12:16] == b"IHDR" else 0


_READERS: dict[bytes, Callable[[bytes, str, int], int]] = {
    b"\x89PNG\r\n\x1a\n": _png,
    b"\xff\xd8": _jpeg,
    b"RIFF": _webp,
    b"GIF8": _gif,
    b"BM": _bmp,
    b"II\x2a\x00": tiff.pixels,
    b"MM\x00\x2a": tiff.pixels,
    b"II\x2b\x00": tiff.pixels,
    b"MM\x00\x2b": tiff.pixels,
    # As Pillow takes them too.
    b"II\x00\x2a": tiff.pixels,
    b"MM\x2a\x00": tiff.pixels,
}
