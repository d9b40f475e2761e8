"""protobuf's wire format: bytes to the fields of those messages that a table describes.

Source:  https://protobuf.dev/programming-guides/encoding
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

# Message -> field number -> (name, kind), with a star before the kind of a field that may come more than once.
# A kind is another message, or: int; int32, enums too; text; bytes; fixed, numbers of 4 or 8 bytes each; count, how
# many varints come.
Table = Mapping[str, Mapping[int, tuple[str, str]]]
Message = dict[str, list[Any]]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LENGTHS = {_FIXED64: 8, _FIXED32: 4}
_DEPTH_MAX = 100  # protobuf's own parsers go no deeper
_INTS_MAX_BYTES = 640  # of one packed field; what is longer is counted, not kept


class Malformed(Exception):
    """Bytes that are not the message that was expected: what was found."""


def message(data: memoryview, kind: str, table: Table, *, depth: int = 0) -> Message:
    """The values of each field that the table names, messages inside it read likewise; other fields are passed over.

    Bytes stay views of the data. What parsers differ in is refused, as another one will read the same bytes: a field of
    one value that comes twice (the last, or both joined), and keys and numbers of more than 32 bits where there are 32
    (cut, or another one).

    Raises:  Malformed
    """
    if depth > _DEPTH_MAX:
        raise Malformed(f"is nested more than {_DEPTH_MAX} messages deep")
    found: Message = {}
    for number, wire, value in _fields(data):
        if number not in table[kind]:
            continue
        name, field = table[kind][number]
        if name in found and not field.startswith("*"):
            raise Malformed(f"gives {name} twice in one {kind}")
        found.setdefault(name, []).extend(_values(value, wire, field, table=table, depth=depth))
    return found


def _values(value: Any, wire: int, field: str, *, table: Table, depth: int) -> list[Any]:
    """What one field holds: several values where they are packed."""
    kind = field.removeprefix("*")
    if wire == _VARINT and kind in {"int", "count"}:
        return [_signed(value) if kind == "int" else 1]
    if wire == _VARINT and kind == "int32":
        number = _signed(value)
        if not -(2**31) <= number < 2**31:
            raise Malformed(f"has the number {number} where there are 32 bits")
        return [number]
    if wire in _LENGTHS and kind == "fixed":
        return [value]
    if wire == _BYTES and kind in table:
        return [message(value, kind, table, depth=depth + 1)]
    if wire == _BYTES and kind in {"bytes", "fixed"}:
        return [value]
    if wire == _BYTES and kind == "text":
        return [_text(value)]
    if wire == _BYTES and kind == "count":
        return [int(np.count_nonzero(np.frombuffer(value, np.uint8) < 128))]
    if wire == _BYTES and field == "*int" and len(value) <= _INTS_MAX_BYTES:
        return [_signed(number) for number in _varints(value)]
    raise Malformed(f"has wire type {wire} in a field of {kind}")


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Number, wire type and value of each field of a message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise Malformed("has a field without a number")
        if key >= 2**32:
            raise Malformed(f"has the field number {number}, which is beyond protobuf's")
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == _BYTES:
            length, at = _varint(data, at)
        elif wire in _LENGTHS:
            length = _LENGTHS[wire]
        else:
            raise Malformed(f"has a field of wire type {wire}")
        if length > len(data) - at:
            raise Malformed(f"ends {length - (len(data) - at)} bytes early")
        yield number, wire, data[at : at + length]
        at += length


def _varints(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of up to 64 bits, seven to a byte, and where the next one begins."""
    value = 0
    for place, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << 7 * place
        if byte < 128 and value < 2**64:
            return value, at + place + 1
    raise Malformed("has a number without an end")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _text(data: memoryview) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise Malformed("has a name that is no UTF-8") from error
