import asyncio
import tracemalloc
from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from service import bodies
from service.body_room import BodyRoom
from service.deadline import Deadline
from service.errors import DeadlinePassed, QueueFull, SlowBody, TooLarge, UnsupportedType
from service.settings import Settings

MEGABYTE = 2**20


def _request(messages: Sequence[Message], **headers: str) -> Request:
    """A request as a server hands it over: message after message."""
    waiting = iter(messages)

    async def receive() -> Message:
        return next(waiting)

    names = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/encode", "headers": names, "state": {}}, receive)


def _chunks(*chunks: bytes) -> list[Message]:
    last = len(chunks) - 1
    return [{"type": "http.request", "body": chunk, "more_body": place < last} for place, chunk in enumerate(chunks)]


def _received(
    request: Request,
    max_bytes: int = MEGABYTE,
    *,
    timeout_ms: int = 60_000,
    body_room: BodyRoom | None = None,
    **limits: int,
) -> bytes:
    settings = Settings(max_body_bytes=max_bytes, **limits)
    body_room = body_room or BodyRoom(max_body_bytes=max_bytes)
    coming = bodies.receive(request, request.headers, settings=settings, deadline=_in(timeout_ms), body_room=body_room)
    return asyncio.run(_answered(request, coming))


async def _answered(request: Request, coming: Coroutine[Any, Any, bytes]) -> bytes:
    """The body of a request that is over once it has come."""
    try:
        return await coming
    finally:
        if begun := request.scope["state"].get("begun"):
            begun.end()


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
    sentence = r"^body: got \d bytes in 6 s, expected the rest of it, or 3 bytes, within 3 s$"
    with pytest.raises(SlowBody, match=sentence) as raised:
        _received(request, transfer_timeout_s=3, min_bytes_per_s=1)
    assert raised.value.headers == {"connection": "close"}


def test_a_body_that_comes_at_the_least_rate_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "perf_counter", _passing(0, 3, 4, 6, 7.9))
    request = _request(_chunks(b"12", b"", b"34", b"", b"5"))
    assert _received(request, transfer_timeout_s=2, min_bytes_per_s=1) == b"12345"


def test_a_body_that_stops_is_not_waited_for_longer_as_much_of_it_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "perf_counter", _passing(0, 1, 3.5, 4.5))
    pieces = [bytes(MEGABYTE // 2), b"1", b"2"]
    request = _request([{"type": "http.request", "body": piece, "more_body": True} for piece in pieces])
    with pytest.raises(SlowBody, match=r"^body: got 2 bytes in 4 s, expected the rest of it, or 30 bytes, within 3 s$"):
        _received(request, transfer_timeout_s=3, min_bytes_per_s=10)


def test_the_deadline_holds_for_a_body_too() -> None:
    begun: Message = {"type": "http.request", "body": b"half", "more_body": True}
    with pytest.raises(DeadlinePassed, match=r"^deadline: 0 ms passed before the answer could be made$"):
        _received(_request([begun]), timeout_ms=0)


LARGEST = 100
"""Bytes of a body, in the tests of several at a time."""


async def _coming(request: Request, body_room: BodyRoom) -> bytes:
    settings = Settings(max_body_bytes=LARGEST)
    coming = bodies.receive(request, {}, settings=settings, deadline=_in(60_000), body_room=body_room)
    return await _answered(request, coming)


async def _begun(size: int, body_room: BodyRoom) -> "asyncio.Task[bytes]":
    """A body of which so much has come, and no more does, though it ends some day."""
    came = asyncio.Event()

    async def receive() -> Message:
        if came.is_set():
            await asyncio.Event().wait()
        came.set()
        return {"type": "http.request", "body": bytes(size), "more_body": True}

    request = Request({"type": "http", "method": "POST", "path": "/encode", "headers": [], "state": {}}, receive)
    coming = asyncio.create_task(_coming(request, body_room))
    await came.wait()
    await asyncio.sleep(0)
    return coming


async def _left(*tasks: "asyncio.Task[bytes]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _require_room(body_room: BodyRoom) -> None:
    """Nothing, if no body is on its way any more."""
    largest = [await _begun(LARGEST, body_room) for _ in range(7)]
    assert not any(each.done() for each in largest)
    await _left(*largest)


def test_bodies_on_their_way_have_room_for_eight_of_the_largest_and_none_more_than_it_leaves() -> None:
    body_room = BodyRoom(max_body_bytes=LARGEST)

    async def main() -> None:
        large = [await _begun(LARGEST, body_room) for _ in range(7)]
        assert not any(each.done() for each in large)
        refused = await _begun(51, body_room)
        assert refused.done()
        refusal = refused.exception()
        assert isinstance(refusal, QueueFull)
        sentence = "got 51 bytes, expected at most 50 bytes while 700 bytes of others are read and answered"
        assert refusal.detail == f"body: {sentence}"
        assert [fault["where"] for fault in refusal.faults] == ["body"]
        assert refusal.headers == {"retry-after": "1"}
        small = [await _begun(size, body_room) for size in (50, 25, 12, 6)]
        assert not any(each.done() for each in small)
        await _left(*large, *small)
        await _require_room(body_room)

    asyncio.run(main())


def test_a_body_that_is_whole_at_once_needs_no_room() -> None:
    body_room = BodyRoom(max_body_bytes=LARGEST)

    async def main() -> None:
        large = [await _begun(LARGEST, body_room) for _ in range(7)]
        assert await _coming(_request(_chunks(bytes(LARGEST))), body_room) == bytes(LARGEST)
        await _left(*large)

    asyncio.run(main())


HALF: Message = {"type": "http.request", "body": bytes(10), "more_body": True}


@pytest.mark.parametrize(
    ("messages", "limits", "ends"),
    [
        ([HALF, {"type": "http.request", "body": bytes(10)}], {}, None),
        ([HALF, {"type": "http.disconnect"}], {}, ClientDisconnect),
        ([HALF] * 3, {"max_bytes": 25}, TooLarge),
        ([HALF] * 2, {"timeout_ms": 0}, DeadlinePassed),
        ([HALF] * 2, {"transfer_timeout_s": 1, "min_bytes_per_s": 1000}, SlowBody),
    ],
    ids=["whole", "left", "too large", "late", "slow"],
)
def test_a_body_that_has_ended_takes_no_room_any_more(
    messages: list[Message], limits: dict[str, int], ends: type[Exception] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ends is SlowBody:
        monkeypatch.setattr(bodies, "perf_counter", _passing(0, 0, 9))
    body_room = BodyRoom(max_body_bytes=LARGEST)
    with nullcontext() if ends is None else pytest.raises(ends):
        _received(_request(messages), body_room=body_room, **limits)
    asyncio.run(_require_room(body_room))


def _peak_bytes(request: Request) -> tuple[int, int]:
    """How long the body is, and the most memory that there was of all that Python asked for meanwhile.

    The body stays inside: `asyncio.run` writes out what it returns, for a message that nobody sees.
    """

    async def receive() -> tuple[int, int]:
        tracemalloc.start()
        try:
            settings = Settings(max_body_bytes=100 * MEGABYTE)
            body_room = BodyRoom(max_body_bytes=settings.max_body_bytes)
            body = await bodies.receive(
                request, request.headers, settings=settings, deadline=_in(60_000), body_room=body_room
            )
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
