"""safetensors bytes to named arrays and back, the numbers themselves not copied either way."""

import json
from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from service.errors import BadBody
from service.wording import type_in_words

MEDIA_TYPE = "application/vnd.safetensors"

Piece = bytes | memoryview

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 2**20
_MAX_TENSORS = 64  # many more than any verb takes
_MAX_AXES = 64  # numpy's own bound; a product of very many lengths would also take its time
_MEMBERS = {"dtype", "shape", "data_offsets"}

_DTYPES = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"), "U16": np.dtype("<u2"), "U32": np.dtype("<u4"), "U64": np.dtype("<u8"),
    "I8": np.dtype("i1"), "I16": np.dtype("<i2"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "C64": np.dtype("<c8"),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class _Entry(NamedTuple):
    """What a header says of one tensor. Entries sort by where their bytes lie, counted from the end of the header."""

    begin: int
    end: int
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def read(body: bytes) -> dict[str, NDArray[Any]]:
    """The tensors of a body as read-only views of it, copied only where this machine cannot compute on them there.

    Raises:  BadBody if it is truncated, its header lies, or a dtype is one that numpy does not have; nothing that
             the header claims is allocated before that
    Source:  https://github.com/huggingface/safetensors#format; a key twice, or one that the format lacks, is refused
    """
    start = _LENGTH_BYTES + _header_bytes(body)
    entries = sorted(_entry(name, said) for name, said in _header(body[_LENGTH_BYTES:start]).items())
    at = 0
    for entry in entries:
        if entry.begin != at:
            raise _refused(
                entry.name, got=f"data from byte {entry.begin}", expected=f"from byte {at}, where others end"
            )
        at = entry.end
    if at != len(body) - start:
        raise _refused("data", got=f"{len(body) - start} bytes", expected=f"{at}, as the header says")
    return {entry.name: _view(body, entry, start=start) for entry in entries}


def reading_cost_us(body: bytes) -> float:
    """What `read` will cost: its header, and with room for a copy of all the rest, should none of it be aligned."""
    header_bytes = int.from_bytes(body[:_LENGTH_BYTES], "little")
    return 15 + 0.05 * min(header_bytes, len(body), _MAX_HEADER_BYTES) + 0.0003 * len(body)


def write(tensors: Mapping[str, NDArray[Any]]) -> tuple[Piece, ...]:
    """One body of tensors in pieces: the header, then the bytes of each, themselves where they are contiguous. Those
    of the largest numbers come first, so that all are aligned.
    """
    header, pieces, at = {}, [], 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        dtype = tensor.dtype.newbyteorder("<")
        piece = np.ascontiguousarray(tensor, dtype).reshape(-1).view(np.uint8).data
        header[name] = {"dtype": _NAMES[dtype], "shape": tensor.shape, "data_offsets": (at, at + len(piece))}
        pieces.append(piece)
        at += len(piece)
    text = orjson.dumps(header)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text, *pieces


def _refused(where: str, *, got: str, expected: str) -> BadBody:
    return BadBody(f"not readable as safetensors: {where[:200]}: got {got}, expected {expected}")


def _header_bytes(body: bytes) -> int:
    if len(body) < _LENGTH_BYTES:
        raise _refused("header", got=f"a body of {len(body)} bytes", expected=f"at least {_LENGTH_BYTES}")
    claimed, most = int.from_bytes(body[:_LENGTH_BYTES], "little"), min(len(body) - _LENGTH_BYTES, _MAX_HEADER_BYTES)
    if claimed > most:
        raise _refused("header", got=f"a length of {claimed} bytes", expected=f"at most {most}")
    return claimed


def _header(text: bytes) -> dict[str, Any]:
    """What the header says of each tensor, by name; its free text is only looked through."""
    try:
        header = _JSON.decode(text.decode())
        orjson.dumps(header)  # refuses halves of characters and numbers beyond 64 bits, which JSON can spell
    except (ValueError, TypeError, RecursionError) as error:
        raise BadBody(f"not readable as safetensors: header: {error}") from error
    if not isinstance(header, dict):
        raise _refused("header", got=type_in_words(header), expected="a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _refused("__metadata__", got=f"{metadata!r:.100}", expected="an object of texts")
    if len(header) > _MAX_TENSORS:
        raise _refused("header", got=f"{len(header):,} tensors", expected=f"at most {_MAX_TENSORS}")
    return header


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) != len(pairs):
        raise ValueError("got a key twice, expected each once")
    return named


def _natural(digits: str) -> int:
    if digits.startswith("-"):
        raise ValueError(f"got {digits[:40]}, expected no number below 0")
    return int(digits)


# Not orjson, which keeps the last of two equal keys and says nothing.
_JSON = json.JSONDecoder(object_pairs_hook=_once, parse_int=_natural)


def _entry(name: str, said: Any) -> _Entry:
    if not isinstance(said, dict) or said.keys() != _MEMBERS:
        raise _refused(name, got=f"{said!r:.100}", expected="an object of dtype, shape and data_offsets")
    dtype = _DTYPES.get(said["dtype"]) if isinstance(said["dtype"], str) else None
    if dtype is None:
        raise _refused(name, got=f"dtype {said['dtype']!r:.40}", expected=f"one of {', '.join(_DTYPES)}")
    shape, offsets = said["shape"], said["data_offsets"]
    if not _are_naturals(shape) or len(shape) > _MAX_AXES:
        raise _refused(name, got=f"shape {shape!r:.100}", expected=f"a list of at most {_MAX_AXES} whole numbers")
    if not _are_naturals(offsets) or len(offsets) != 2:
        raise _refused(name, got=f"data_offsets {offsets!r:.100}", expected="two whole numbers")
    begin, end = offsets
    needed = prod(shape) * dtype.itemsize
    if end - begin != needed:
        raise _refused(name, got=f"{end - begin} bytes of data", expected=f"the {needed} of {dtype.name} {shape}")
    return _Entry(begin, end, name, dtype, tuple(shape))


def _are_naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int for number in value)


def _view(body: bytes, entry: _Entry, *, start: int) -> NDArray[Any]:
    try:
        view = np.ndarray(entry.shape, entry.dtype, buffer=body, offset=start + entry.begin)
    except ValueError as error:  # no bytes at all, of a shape that is too long for numpy all the same
        raise _refused(entry.name, got=f"shape {list(entry.shape)}", expected="one that numpy has") from error
    return np.require(view, entry.dtype.newbyteorder("="), "A")
