"""Plain PNGs, of 8-bit grey or RGB pixels and nothing else: written without Pillow, read by its pixel decoder alone."""

import struct
import threading
from typing import Literal, NamedTuple

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image

Uint8 = NDArray[np.uint8]

# Width, height, bits a channel, colour type, then compression, filtering and interlacing, all three of them 0.
_HEADER = struct.Struct(">II5B")
_SIZE = struct.Struct(">II")
_COLOUR_TYPES = {1: 0, 3: 2}
_MODES: dict[bytes, Literal["L", "RGB"]] = {b"\x08\x00\x00\x00\x00": "L", b"\x08\x02\x00\x00\x00": "RGB"}

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_OPENING = _SIGNATURE + b"\x00\x00\x00\x0dIHDR"
_END = b"\x00\x00\x00\x00IEND"
_END_CHECKSUM = b"\xae\x42\x60\x82"

# What Pillow's reader hands to its decoder at a time. Up to here both ways are one and the same call.
_MOST_BYTES = 2**16

# Pixels that are inflated by isal, which takes half of zlib's time, then handed on as a stream that zlib has but to
# copy: for fewer that does not pay, and a block that is only copied holds no more.
_INFLATED_BYTES = range(2**11, 2**16)
_COPIED = b"\x78\x01\x01"  # the head of such a stream, and of its one block

# Larger pictures are not worth keeping a place for, and no service has more sizes than a few.
_CANVAS_PIXELS = 2**14
_MOST_CANVASES = 8

_SUB = 1


def encode(image: Uint8) -> bytes:
    """A picture as a PNG.

    Shapes:  image (h, w, c), c 1 or 3
    Source:  PNG, third edition, W3C 2025
    """
    height, width, channels = image.shape
    header = _HEADER.pack(width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    deflated = isal_zlib.compress(_filtered(image), level=1)
    return b"".join((_SIGNATURE, *_chunk(b"IHDR", header), *_chunk(b"IDAT", deflated), _END, _END_CHECKSUM))


def _filtered(image: Uint8) -> Uint8:
    """Lines as PNG deflates them: the number of the filter, then each pixel less the one on its left.

    Shapes:  image (h, w, c) -> (h, 1 + w · c)
    """
    height, width, channels = image.shape
    lines = image.reshape(height, width * channels)
    filtered = np.empty((height, 1 + width * channels), np.uint8)
    filtered[:, 0] = _SUB
    filtered[:, 1 : 1 + channels] = lines[:, :channels]
    np.subtract(lines[:, channels:], lines[:, :-channels], out=filtered[:, 1 + channels :])
    return filtered


def _chunk(name: bytes, content: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    checksum = isal_zlib.crc32(content, isal_zlib.crc32(name))
    return len(content).to_bytes(4), name, content, checksum.to_bytes(4)


class Plain(NamedTuple):
    """A plain PNG whose header has been read and whose pixels have not."""

    mode: Literal["L", "RGB"]
    width: int
    height: int
    deflated: bytes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, as Pillow orders them."""
        return self.width, self.height

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c)."""
        return self.height, self.width, 1 if self.mode == "L" else 3

    def decoded(self) -> Image.Image:
        """The picture, by the call that decodes its pixels in Pillow's own PNG reader too.

        Raises:  ValueError if they are broken or incomplete
        """
        return Image.frombytes(self.mode, self.size, self._stream(), "zip", self.mode)

    def pixels(self) -> Uint8:
        """The pixels of the picture.

        Shapes:  -> (h, w, c)
        Raises:  ValueError if they are broken or incomplete
        """
        if self.mode != "L" or self.width * self.height > _CANVAS_PIXELS:
            return np.frombuffer(self.decoded().tobytes(), np.uint8).reshape(self.shape)
        canvas, pixels = _canvases.of(self.size)
        pixels.fill(0)  # a stream may end early, which Pillow takes for black, and nobody sees what was here before
        canvas.frombytes(self._stream(), "zip", "L")
        return pixels.copy()

    def _stream(self) -> bytes:
        """The lines as Pillow takes them: deflated, or as good as not where that is faster. What is not a sound stream
        of just these lines is Pillow's to judge.

        Source:  RFC 1950, section 2.2; RFC 1951, section 3.2.4
        """
        height, width, channels = self.shape
        n_bytes = height * (1 + width * channels)
        if n_bytes not in _INFLATED_BYTES:
            return self.deflated
        inflating = isal_zlib.decompressobj()
        try:
            lines = inflating.decompress(self.deflated, n_bytes + 1)
        except Exception:  # of a class that isal does not name in public
            return self.deflated
        if len(lines) != n_bytes or not inflating.eof:
            return self.deflated
        length = n_bytes.to_bytes(2, "little") + (n_bytes ^ 0xFFFF).to_bytes(2, "little")
        return b"".join((_COPIED, length, lines, isal_zlib.adler32(lines).to_bytes(4)))


class _Canvases(threading.local):
    """Grey pictures of this thread's own, each over an array that holds its pixels. A small picture that is decoded
    into one of them needs no other to be made, and no way out of Pillow's memory.
    """

    def __init__(self) -> None:
        self._by_size: dict[tuple[int, int], tuple[Image.Image, Uint8]] = {}

    def of(self, size: tuple[int, int]) -> tuple[Image.Image, Uint8]:
        """The picture of a size, and its pixels: whoever decodes into the one finds all of them in the other.

        Shapes:  size (w, h) -> pixels (h, w, 1)
        """
        found = self._by_size.get(size)
        if found is None:
            if len(self._by_size) == _MOST_CANVASES:
                self._by_size.clear()
            pixels = np.zeros((size[1], size[0], 1), np.uint8)
            found = Image.frombuffer("L", size, pixels, "raw", "L", 0, 1), pixels
            self._by_size[size] = found
        return found


_canvases = _Canvases()


def read(data: bytes) -> Plain | None:
    """The picture if the file is a plain PNG, its pixels in one chunk of at most 64 KiB; None for every other file."""
    mode = _MODES.get(data[24:29])
    if mode is None or data[:16] != _OPENING or isal_zlib.crc32(data[12:29]) != int.from_bytes(data[29:33]):
        return None
    width, height = _SIZE.unpack_from(data, 16)
    length = int.from_bytes(data[33:37])
    end = 41 + length
    if data[37:41] != b"IDAT" or data[end + 4 : end + 12] != _END or length > _MOST_BYTES or not width * height:
        return None
    return Plain(mode, width, height, data[41:end])
