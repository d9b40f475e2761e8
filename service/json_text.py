"""JSON of named values, long arrays and lists among them, written piece by piece."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orjson

# What orjson writes within the event loop's budget; it lets no other thread have the interpreter meanwhile.
_PIECE_BYTES = 2**16
_NUMBER_BYTES = 11


def pieces(document: Mapping[str, Any]) -> tuple[bytes] | Iterator[bytes]:
    """The text that orjson writes at once, in pieces of which each is written when it is asked for."""
    if sum([_text_bytes(value) for value in document.values()]) <= _PIECE_BYTES:
        return (_dumps(document),)
    return _pieces(document)


def _pieces(document: Mapping[str, Any]) -> Iterator[bytes]:
    opening = b"{"
    for name, value in document.items():
        opening += _dumps(name) + b":"
        text_bytes = _text_bytes(value)
        if text_bytes <= _PIECE_BYTES:
            opening += _dumps(value) + b","
            continue
        rows = max(1, _PIECE_BYTES * len(value) // text_bytes)
        for start in range(0, len(value), rows):
            text = _dumps(value[start : start + rows])
            yield opening + text[:-1] if start == 0 else b"," + text[1:-1]
        opening = b"],"
    yield opening[:-1] + b"}"


def _text_bytes(value: object) -> int:
    """About how long the text of an array or of a list of texts is; of all else it is short."""
    if isinstance(value, np.ndarray):
        return _NUMBER_BYTES * value.size
    return sum(map(len, value)) if isinstance(value, list) else 0


def _dumps(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
