"""A multipart body as its parts, each cut out of the body once."""

from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import BadBody, invalid, too_large

# So much is read at a time, so that a thread that reads a large body lets others have their turn.
_CHUNK_BYTES = 2**16

PICTURES = "images"
"""Parts of this name are pictures, whatever their clients call the files."""

_MAX_FIELDS = 64
_MAX_FIELD_BYTES = 2**16

# A boundary has 70 characters at most (RFC 2046, section 5.1.1); of a header that is much longer each piece costs time.
_MAX_TYPE_CHARACTERS = 256

# What a part takes to read, about, and what the parser looks at one by one: lines that could be boundaries, options of
# a header, blanks. A body of more than one chunk counts as long without being looked at.
_MARKS_US = {b"\r\n\r\n": 15.0, b"\r\n--": 1.0, b";": 0.5, b" ": 0.2, b"\t": 0.2}
_LONG_US = 10_000.0


@dataclass(frozen=True, slots=True)
class Part:
    """One part: a file if it has a file's name, or if it is named as pictures are and is no text; else the value of a
    field.

    Source:  RFC 7578, section 4.2, which leaves the file's name to the client
    """

    name: str
    is_file: bool
    content: bytes

    @property
    def text(self) -> str:
        """The value of a field."""
        return _text(self.content)


def reading_cost_us(body: bytes) -> float:
    """What `read` will cost."""
    if len(body) > _CHUNK_BYTES:
        return _LONG_US
    return sum(cost_us * body.count(mark) for mark, cost_us in _MARKS_US.items())


def read(body: bytes, content_type: str, *, max_files: int) -> list[Part]:
    """The parts, in order.

    Raises:  BadBody if it is cut or no form, TooLarge if it holds more files than that
    Source:  RFC 7578
    """
    if len(content_type) > _MAX_TYPE_CHARACTERS:
        raise _unreadable(
            f"its Content-Type has {len(content_type):,} characters, expected at most {_MAX_TYPE_CHARACTERS}"
        )
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise _unreadable("its Content-Type names no boundary; leave that header to the client's library")
    if b"--" + boundary not in body:
        raise _unreadable(
            "it has not the boundary that its Content-Type names; leave that header to the client's library"
        )
    reader = _Reader(body, max_files=max_files)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": reader.part_begin,
                "on_header_field": reader.header_field,
                "on_header_value": reader.header_value,
                "on_header_end": reader.header_end,
                "on_headers_finished": reader.headers_finished,
                "on_part_data": reader.part_data,
                "on_part_end": reader.part_end,
                "on_end": reader.end,
            },
        )
        for start in range(0, len(body), _CHUNK_BYTES):
            reader.start, reader.chunk = start, body[start : start + _CHUNK_BYTES]
            parser.write(reader.chunk)
    except FormParserError as error:
        raise _unreadable(str(error)) from error
    if not reader.is_whole:  # the last part would be lost without a word
        raise _unreadable("it ends before its last boundary")
    return reader.parts


class _Reader:
    """Notes where the parts lie, as the parser comes upon them in one chunk of the body after the other."""

    def __init__(self, body: bytes, *, max_files: int) -> None:
        self.parts: list[Part] = []
        self.is_whole = False
        self.chunk = b""
        self.start = 0
        self._body = body
        self._max_files = max_files
        self._files = self._fields = 0

    def part_begin(self) -> None:
        self._disposition = self._header = self._value = b""
        self._at, self._bytes = 0, 0

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise _unreadable("a part has no name in its Content-Disposition")
        self._name = _text(options[b"name"])
        self._has_filename = b"filename" in options
        may_be_file = self._has_filename or self._name == PICTURES
        self._files += may_be_file
        self._fields += not may_be_file
        if self._files > self._max_files:
            raise too_large("rows", got=self._files, limit=self._max_files, unit="rows")
        if self._fields > _MAX_FIELDS:
            raise invalid("form", got=f"more than {_MAX_FIELDS} fields", expected=f"at most {_MAX_FIELDS}")

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if not self._bytes:
            # What ended the last chunk and could have been a boundary comes from the parser's own memory.
            self._at = self.start + start if data is self.chunk else self.start - (end - start)
        self._bytes += end - start

    def part_end(self) -> None:
        content = self._body[self._at : self._at + self._bytes]
        is_file = self._has_filename or (self._name == PICTURES and not _is_text(content))
        if not is_file and self._bytes > _MAX_FIELD_BYTES:
            raise too_large(f"form.{self._name[:40]}", got=self._bytes, limit=_MAX_FIELD_BYTES, unit="bytes")
        self.parts.append(Part(self._name, is_file, content))

    def end(self) -> None:
        self.is_whole = True


def _is_text(sent: bytes) -> bool:
    """Whether it could be a field's value, as the name of a file in place of the file; no picture can be read so."""
    return sent.isascii() and sent.decode().isprintable()


def _text(sent: bytes) -> str:
    try:
        return sent.decode()
    except UnicodeDecodeError:
        return sent.decode("latin-1")


def _unreadable(reason: str) -> BadBody:
    return BadBody(f"not readable as multipart/form-data: {reason}")
