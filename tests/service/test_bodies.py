import asyncio
import tracemalloc
from collections.abc import Callable, Sequence
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from service import bodies
from service.deadline import Deadline
from service.errors import DeadlinePassed, SlowBody, TooLarge, UnsupportedType
from service.settings import Settings

MEGABYTE = 2**20


def _request(messages: Sequence[Message], **headers: str) -> Request:
    """A request as a server hands it over: message after message."""
    waiting = iter(messages)

    async def receive() -> Message:
        return next(waiting)

    names = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/encode", "headers": names}, receive)


def _chunks(*chunks: bytes) -> list[Message]:
    last = len(chunks) - 1
    return [{"type": "http.request", "body": chunk, "more_body": place < last} for place, chunk in enumerate(chunks)]


def _received(request: Request, max_bytes: int = MEGABYTE, *, timeout_ms: int = 60_000, **limits: int) -> bytes:
    settings = Settings(max_body_bytes=max_bytes, **limits)
    return asyncio.run(bodies.receive(request, request.headers, settings=settings, deadline=_in(timeout_ms)))


def _in(timeout_ms: int) -> Deadline:
    return Deadline(perf_counter(), timeout_ms=timeout_ms)


@given(chunks=st.lists(st.binary(max_size=20), min_size=1, max_size=6))
def test_a_body_is_its_chunks_in_order(chunks: list[bytes]) -> None:
    assert _received(_request(_chunks(*chunks))) == b"".join(chunks)


def test_a_body_of_one_chunk_is_that_chunk() -> None:
    chunk = bytes(1000)
    assert _received(_request(_chunks(chunk), content_length="1000")) is chunk


def test_a_message_without_a_body_is_an_empty_one() -> None:
    assert _received(_request([{"type": "http.request"}])) == b""


@pytest.mark.parametrize("declared", [{"content_length": "101"}, {}], ids=["declared", "as it comes"])
def test_json_has_a_limit_of_its_own(declared: dict[str, str]) -> None:
    """While it is read, nobody else has the interpreter."""
    chunks, json = (bytes(60), bytes(41)), "application/json; charset=utf-8"
    request = _request(_chunks(*chunks), content_type=json, **declared)
    with pytest.raises(TooLarge) as refused:
        _received(request, max_json_bytes=100)
    assert refused.value.detail == "a body of JSON: got 101 bytes, the limit is 100"
    assert _received(_request(_chunks(*chunks), content_type=json), max_json_bytes=101) == bytes(101)
    assert _received(_request(_chunks(*chunks)), max_json_bytes=100) == bytes(101)


def test_json_is_bound_by_the_limit_of_all_bodies_too() -> None:
    with pytest.raises(TooLarge) as refused:
        _received(_request(_chunks(bytes(101)), content_type="application/json"), max_bytes=100)
    assert refused.value.detail == "a body of JSON: got 101 bytes, the limit is 100"


@pytest.mark.parametrize("declared", ["1", "1000000"], ids=["too little", "too much"])
def test_a_body_is_what_came_whatever_length_was_declared(declared: str) -> None:
    assert _received(_request(_chunks(b"ab", b"cd"), content_length=declared)) == b"abcd"


def test_a_declared_length_over_the_limit_is_refused_before_anything_is_read() -> None:
    with pytest.raises(TooLarge, match=r"^body: got 1,048,577 bytes, the limit is 1,048,576$"):
        _received(_request([], content_length=str(MEGABYTE + 1)))


@pytest.mark.parametrize("declared", ["8", "-1", "²", ""])
def test_a_body_over_the_limit_is_refused_whatever_length_was_declared(declared: str) -> None:
    request = _request(_chunks(b"12345", b"67890", b"1"), content_length=declared)
    with pytest.raises(TooLarge, match=r"^body: got 10 bytes, the limit is 8$"):
        _received(request, max_bytes=8)


def test_a_compressed_body_is_refused() -> None:
    with pytest.raises(UnsupportedType, match=r"^Content-Encoding: got gzip, expected none$"):
        _received(_request([], content_encoding="gzip"))


def test_a_caller_who_leaves_in_the_middle_of_a_body_is_noticed() -> None:
    begun: Message = {"type": "http.request", "body": b"half", "more_body": True}
    with pytest.raises(ClientDisconnect):
        _received(_request([begun, {"type": "http.disconnect"}]))


def _passing(*seconds: float) -> Callable[[], float]:
    """A clock that shows these times, one after the other, and then stands."""
    times = list(seconds)
    return lambda: times.pop(0) if len(times) > 1 else times[0]


@pytest.mark.parametrize("pieces", [[b"", b""], [b"12", b"", b""]], ids=["nothing", "too little"])
def test_a_body_that_does_not_come_is_waited_for_so_long(pieces: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "perf_counter", _passing(0, 0.5, 5.5))
    request = _request([{"type": "http.request", "body": piece, "more_body": True} for piece in pieces])
    sentence = r"^body: got \d bytes in [56] s, expected all of it within 3 s, or 1 bytes a second$"
    with pytest.raises(SlowBody, match=sentence) as raised:
        _received(request, transfer_timeout_s=3, min_bytes_per_s=1)
    assert raised.value.headers == {"connection": "close"}


def test_a_body_that_comes_at_the_least_rate_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "perf_counter", _passing(0, 3, 4, 5))
    request = _request(_chunks(b"1234", b"5678", b"", b"9"))
    assert _received(request, transfer_timeout_s=1, min_bytes_per_s=1) == b"123456789"


def test_the_deadline_holds_for_a_body_too() -> None:
    begun: Message = {"type": "http.request", "body": b"half", "more_body": True}
    with pytest.raises(DeadlinePassed, match=r"^deadline: 0 ms passed before the answer could be made$"):
        _received(_request([begun]), timeout_ms=0)


def _peak_bytes(request: Request) -> tuple[int, int]:
    """How long the body is, and the most memory that there was of all that Python asked for meanwhile.

    The body stays inside: `asyncio.run` writes out what it returns, for a message that nobody sees.
    """

    async def receive() -> tuple[int, int]:
        tracemalloc.start()
        try:
            settings = Settings(max_body_bytes=100 * MEGABYTE)
            body = await bodies.receive(request, request.headers, settings=settings, deadline=_in(60_000))
            return len(body), tracemalloc.get_traced_memory()[1]
        except ClientDisconnect:
            return 0, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return asyncio.run(receive())


def test_a_body_is_in_memory_once_while_it_arrives() -> None:
    """With room to grow by an eighth."""
    length, peak = _peak_bytes(_request(_chunks(*[bytes(MEGABYTE // 16)] * 256)))
    assert length == 16 * MEGABYTE
    assert peak < 1.2 * length


def test_a_length_that_is_only_declared_takes_no_memory() -> None:
    begun: Message = {"type": "http.request", "body": b"1", "more_body": True}
    request = _request([begun, {"type": "http.disconnect"}], content_length=str(100 * MEGABYTE))
    length, peak = _peak_bytes(request)
    assert length == 0
    assert peak < MEGABYTE
