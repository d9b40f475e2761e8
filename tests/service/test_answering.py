"""Whole answers are the bytes that uvicorn would write, in one write; of all others it writes every byte itself."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.http.answering import Answering
from service.http.outgoing import Outbox, Outgoing

DEFAULTS = [(b"date", b"Sun, 29 Nov 2026 12:00:00 GMT"), (b"x-content-type-options", b"nosniff")]

names = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12).map(str.encode)
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E) | st.just("\t"), max_size=20).map(str.encode)
headers = st.lists(st.tuples(names, values), max_size=6, unique_by=lambda header: header[0])
bodies = st.lists(st.binary(max_size=40), min_size=1, max_size=3)


class Wire(asyncio.Transport):
    """A transport that keeps a list of its writes."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def exchange(
    wire: Wire, *, method: str = "GET", keep_alive: bool = True, on_response: Callable[[], None] = lambda: None
) -> tuple[RequestResponseCycle, Outgoing]:
    """uvicorn's side of a request and its answer, and what leaves by its connection."""
    outgoing = Outgoing(wire, Outbox(), hears_out=lambda: False)
    cycle = RequestResponseCycle(
        scope={"type": "http", "method": method, "http_version": "1.1", "path": "/"},  # type: ignore[typeddict-item]
        transport=cast("asyncio.Transport", outgoing),
        flow=FlowControl(wire),
        logger=logging.getLogger("none"),
        access_logger=logging.getLogger("none"),
        access_log=False,
        default_headers=DEFAULTS,
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=on_response,
    )
    return cycle, outgoing


def written(
    messages: Iterable[Message], *, through_us: bool, method: str = "GET", keep_alive: bool = True
) -> tuple[list[bytes], tuple[bool, bool, bool, int], str]:
    """The writes of an answer, what is true of it and of its connection then, and what went wrong."""

    async def main() -> tuple[list[bytes], tuple[bool, bool, bool, int], str]:
        wire, ends = Wire(), []
        cycle, outgoing = exchange(wire, method=method, keep_alive=keep_alive, on_response=lambda: ends.append(1))

        async def app(_scope: Any, _receive: Any, send: Any) -> None:
            for message in messages:
                await send(message)

        wrong = ""
        try:
            await (Answering(app, cycle, outgoing) if through_us else app)(cycle.scope, cycle.receive, cycle.send)
        except RuntimeError as error:
            wrong = str(error)
        await asyncio.sleep(0)
        return wire.writes, (cycle.response_started, cycle.response_complete, wire.closed, len(ends)), wrong

    return asyncio.run(main())


def answer(status: int, sent: list[tuple[bytes, bytes]], *parts: bytes, length: int | None = None) -> list[Message]:
    """The messages of an answer that states its length."""
    stated = sum(map(len, parts)) if length is None else length
    start = {"type": "http.response.start", "status": status, "headers": [*sent, (b"content-length", b"%d" % stated)]}
    *first, last = parts
    return [
        start,
        *({"type": "http.response.body", "body": part, "more_body": True} for part in first),
        {"type": "http.response.body", "body": last},
    ]


def assert_as_uvicorn(messages: list[Message], **kwargs: Any) -> list[bytes]:
    """What is written through us, which is what uvicorn writes."""
    ours, theirs = (written(messages, through_us=through_us, **kwargs) for through_us in (True, False))
    assert b"".join(ours[0]) == b"".join(theirs[0])
    assert ours[1:] == theirs[1:]
    return ours[0]


@given(
    status=st.sampled_from([200, 206, 400, 422, 500]),
    sent=headers,
    body=st.binary(max_size=100),
    method=st.sampled_from(["GET", "POST"]),
)
def test_a_whole_answer_is_what_uvicorn_writes_in_one_write(
    status: int, sent: list[tuple[bytes, bytes]], body: bytes, method: str
) -> None:
    taken = {b"connection", b"transfer-encoding", b"content-length", *dict(DEFAULTS)}
    sent = [header for header in sent if header[0] not in taken]
    assert len(assert_as_uvicorn(answer(status, sent, body), method=method)) == 1


@given(
    status=st.sampled_from([200, 204, 304]),
    sent=st.lists(
        st.one_of(
            st.tuples(names, values),
            st.sampled_from(
                [(b"connection", b"close"), (b"transfer-encoding", b"chunked"), (b"content-length", b"3"), (b"", b"")]
            ),
        ),
        max_size=4,
    ),
    parts=bodies,
    length=st.sampled_from([None, 0, 7]),
    method=st.sampled_from(["GET", "HEAD"]),
    keep_alive=st.booleans(),
)
def test_every_other_answer_is_uvicorns(
    status: int,
    sent: list[tuple[bytes, bytes]],
    parts: list[bytes],
    length: int | None,
    method: str,
    keep_alive: bool,
) -> None:
    assert_as_uvicorn(answer(status, sent, *parts, length=length), method=method, keep_alive=keep_alive)


def test_a_long_body_is_written_without_a_copy() -> None:
    _, body = assert_as_uvicorn(answer(200, [], bytes(2**17 + 1)))
    assert len(body) == 2**17 + 1


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb", b"a\r\n\r\n<html>", b"a\x00b", b"a\x7f"])
def test_a_header_that_could_be_read_as_two_is_refused(value: bytes) -> None:
    writes, (started, complete, _, ends), wrong = written(answer(200, [(b"x-model", value)], b"body"), through_us=True)
    assert writes == []
    assert (complete, ends) == (False, 0)
    assert started  # so uvicorn closes the connection
    assert wrong == "Invalid HTTP header value."


def test_an_answer_that_never_gets_a_body_is_not_begun() -> None:
    start, _ = answer(200, [], b"body")
    assert written([start], through_us=True) == ([], (False, False, False, 0), "")


def test_messages_out_of_order_are_refused_as_uvicorn_refuses_them() -> None:
    start, body = answer(200, [], b"body")
    for messages in ([body], [start, start], [start, body, body], [start, body, start]):
        _, _, wrong = written(messages, through_us=True)
        assert wrong == written(messages, through_us=False)[2] != ""


def test_an_answer_to_a_client_who_has_stopped_reading_waits_until_it_reads() -> None:
    async def main() -> list[bytes]:
        wire = Wire()
        cycle, outgoing = exchange(wire)

        async def app(_scope: Any, _receive: Any, send: Any) -> None:
            for message in answer(200, [], b"body"):
                await send(message)

        cycle.flow.pause_writing()
        answering = asyncio.ensure_future(Answering(app, cycle, outgoing)(cycle.scope, cycle.receive, cycle.send))
        await asyncio.sleep(0)
        assert wire.writes == []
        cycle.flow.resume_writing()
        await answering
        return wire.writes

    assert b"".join(asyncio.run(main())).endswith(b"\r\n\r\nbody")
