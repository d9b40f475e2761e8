"""A request's body, of any of the types that a verb reads, as pictures, tensors, members and options."""

import base64
import binascii
import re
from collections.abc import Mapping
from time import perf_counter
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

import orjson
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request

from service import images, multipart, tensors
from service.body_room import BodyRoom
from service.budget import spend
from service.deadline import Deadline
from service.errors import BadBody, SlowBody, TooLarge, UnsupportedType, found_at, invalid, too_large
from service.settings import Settings
from service.wording import shown, type_in_words

# What a byte of JSON takes to read, by `python -m benchmarks.wire`, with room for base64 and for lists of nothing.
JSON_BYTE_US = 0.01

_JSON = "application/json"

# A data: URI up to its comma: RFC 2397, whose words have no case.
_DATA_URI = re.compile(r"data:.*;base64", re.IGNORECASE | re.DOTALL)

_ESCAPES = (("%2B", "+"), ("%2b", "+"), ("%2F", "/"), ("%2f", "/"), ("%3D", "="), ("%3d", "="))

# What a safetensors body may hold.
_AS_TENSORS = frozenset({"images", "z"})

# Many more than any verb knows; a body of nothing but unknown options must not cost a fault each.
_MAX_OPTIONS = 64

T = TypeVar("T")


class Placed(NamedTuple, Generic[T]):
    """A value and the place in the request where it stood."""

    where: str
    value: T


class Body(NamedTuple):
    """What a body carried. `pictures` are undecoded files; `members` are `images`, `z` and `points` as sent."""

    pictures: tuple[Placed[bytes], ...] = ()
    members: Mapping[str, Any] = MappingProxyType({})
    options: tuple[tuple[str, Placed[Any]], ...] = ()
    json_bytes: int = 0
    """What the members were read from, where that was JSON."""

    @property
    def place(self) -> str:
        """What stands before a member's name where it is spoken of."""
        return "body" if self.json_bytes else "tensor"

    def place_of(self, option: str) -> str:
        """Where an option of the request stood: here, or else in the query."""
        return next((placed.where for name, placed in self.options if name == option), f"query.{option}")


EMPTY = Body()


async def receive(
    request: Request, headers: Mapping[str, str], *, settings: Settings, deadline: Deadline, body_room: BodyRoom
) -> bytes:
    """The whole body. The server sends an empty piece from time to time while none comes (`protocol`).

    Raises:  TooLarge as soon as it is known to be, UnsupportedType if it is compressed, QueueFull if others leave
             no room for it, SlowBody and DeadlinePassed if the rest of it did not come in time,
             ClientDisconnect if it will not come
    """
    is_json = _media_type(headers) == _JSON
    max_bytes = min(settings.max_json_bytes, settings.max_body_bytes) if is_json else settings.max_body_bytes
    encoding = headers.get("content-encoding", "identity")
    if encoding.strip(" \t").lower() != "identity":  # RFC 9110, section 8.4.1
        raise found_at("Content-Encoding", UnsupportedType, got=encoding, expected="none")
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(int(declared), max_bytes, is_json=is_json)
    began = perf_counter()
    chunk, more = await _piece(request)
    if not more and len(chunk) <= max_bytes:
        return chunk
    pace = _Pace(settings, since=began)
    request.state.begun = whole = body_room.begin()  # which `doors` ends once the request is answered
    while True:
        size = whole.size + len(chunk)
        if size > max_bytes:
            raise _too_large(size, max_bytes, is_json=is_json)
        whole.write(chunk)
        if not more:
            return whole.content()
        pace.require(size)
        if deadline.left_s() < 0:
            raise deadline.passed()
        chunk, more = await _piece(request)


async def _piece(request: Request) -> tuple[bytes, bool]:
    """The next of a body, and whether more follows.

    Raises:  ClientDisconnect
    """
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


class _Pace:
    """How a body comes: in each `transfer_timeout_s` its end, or as many bytes as the least rate asks for, however many
    came before.

    Units:   since as perf_counter gives it
    """

    def __init__(self, settings: Settings, *, since: float) -> None:
        self._window_s = settings.transfer_timeout_s
        self._least_bytes = self._window_s * settings.min_bytes_per_s
        self._size = 0
        self._since = since

    def require(self, size: int) -> None:
        """Refuse to wait on for a body of which so little has come lately.

        Raises:  SlowBody
        """
        now, came = perf_counter(), size - self._size
        if came >= self._least_bytes:
            self._size, self._since = size, now
        elif now - self._since > self._window_s:
            raise SlowBody(
                f"body: got {came:,} bytes in {now - self._since:.0f} s, expected the rest of it, or "
                f"{self._least_bytes:,} bytes, within {self._window_s} s",
                headers={"connection": "close"},
            )


async def parse(
    body: bytes, headers: Mapping[str, str], *, takes: frozenset[str], max_parts: int, deadline: Deadline
) -> Body:
    """What the body says, by its content type.

    Raises:  BadBody, UnsupportedType, Invalid for what the verb does not take, TooLarge for too many pictures,
             DeadlinePassed
    """
    if not body:
        return EMPTY
    media_type = _media_type(headers)
    if media_type == _JSON:
        return await spend(JSON_BYTE_US * len(body), deadline, _json, body, takes, max_parts)
    if media_type == tensors.MEDIA_TYPE and takes:
        return _tensors(await spend(tensors.reading_cost_us(body), deadline, tensors.read, body), takes)
    if "images" in takes:
        if media_type in images.MEDIA_TYPES or media_type == "image/jpg":  # as many write it by hand
            return Body(pictures=(Placed("body", body),))
        if media_type == "multipart/form-data":
            return await _multipart(body, headers, max_parts=max_parts, deadline=deadline)
    expected = f"one of {', '.join(readable_types(takes))}"
    raise found_at("Content-Type", UnsupportedType, got=media_type or "none", expected=expected)


def _media_type(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _too_large(got: int, limit: int, *, is_json: bool) -> TooLarge:
    return too_large("a body of JSON" if is_json else "body", got=got, limit=limit, unit="bytes", where="body")


def readable_types(takes: frozenset[str]) -> tuple[str, ...]:
    """The content types that a verb reads, in the order of docs/api.md: /docs opens a verb on the first."""
    pictures = (*images.MEDIA_TYPES, "multipart/form-data") if "images" in takes else ()
    return (*pictures, _JSON, *((tensors.MEDIA_TYPE,) if takes else ()))


def _json(body: bytes, takes: frozenset[str], max_parts: int) -> Body:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadBody(f"not readable as JSON: {error}") from error
    if not isinstance(document, dict):
        raise invalid("body", got=type_in_words(document), expected="a JSON object")
    require_few(len(document) - len(takes & document.keys()))
    members = {name: value for name, value in document.items() if name in takes}
    options = tuple((name, Placed(f"body.{name}", value)) for name, value in document.items() if name not in takes)
    pictures: tuple[Placed[bytes], ...] = ()
    if isinstance(sent := members.get("images"), list):
        if len(sent) > max_parts:
            raise too_large("rows", got=len(sent), limit=max_parts, unit="rows")
        del members["images"]
        pictures = tuple(
            Placed(where, picture_bytes(Placed(where, value)))
            for where, value in ((f"body.images[{index}]", value) for index, value in enumerate(sent))
        )
    return Body(pictures, members, options, json_bytes=len(body))


def require_few(options: int) -> None:
    """Nothing, unless there are more options than any verb knows by far.

    Raises:  Invalid
    """
    if options > _MAX_OPTIONS:
        raise invalid("options", got=f"{options} of them", expected=f"at most {_MAX_OPTIONS}")


def _tensors(found: Mapping[str, NDArray[Any]], takes: frozenset[str]) -> Body:
    """Options stand in the query: as arrays they could be of any length."""
    known = takes & _AS_TENSORS
    for name in found:
        if name not in known:
            raise invalid(f"tensor.{name[:200]}", got=name[:200], expected=f"one of {', '.join(sorted(known))}")
    return Body(members=found)


def picture_bytes(item: Placed[Any]) -> bytes:
    """The file behind a base64 string, whose lines may be broken, or a data: URI. Nothing is ever fetched.

    Raises:  Invalid if it is neither
    """
    text = item.value
    if isinstance(text, str):
        head, comma, data = text.partition(",")
        is_uri = comma and _DATA_URI.fullmatch(head)
        encoded = _unescaped(data) if is_uri else text
        try:
            return base64.b64decode(encoded.replace("\r", "").replace("\n", ""), validate=True)
        except (binascii.Error, ValueError):
            pass
    raise invalid(item.where, got=shown(text, most=40), expected="a picture as base64, or as a base64 data: URI")


def _unescaped(data: str) -> str:
    """Without the escapes that base64 in a URI may have; to undo all of them makes an object of each."""
    for escape, sign in _ESCAPES if "%" in data else ():
        data = data.replace(escape, sign)
    return data


async def _multipart(body: bytes, headers: Mapping[str, str], *, max_parts: int, deadline: Deadline) -> Body:
    cost_us = multipart.reading_cost_us(body)
    parts = await spend(cost_us, deadline, multipart.read, body, headers["content-type"], max_files=max_parts)
    pictures: list[Placed[bytes]] = []
    options: list[tuple[str, Placed[Any]]] = []
    for part in parts:
        if part.is_file:
            if part.name != multipart.PICTURES:
                raise invalid(f"form.{part.name}", got="a file", expected="files in parts named images")
            pictures.append(Placed(f"form.images[{len(pictures)}]", part.content))
        elif part.name == multipart.PICTURES:
            raise invalid("form.images", got="text", expected="a file, as curl -F images=@a.png sends it")
        else:
            options.append((part.name, Placed(f"form.{part.name}", part.text)))
    return Body(tuple(pictures), options=tuple(options))
