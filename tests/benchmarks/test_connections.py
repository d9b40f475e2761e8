"""A request that nobody answered is lost if the server had read it, and may be sent again if not."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import uvloop

from benchmarks.connections import Answer, Connection, Unanswered, as_bytes, connect
from benchmarks.servers import Request

REQUEST = as_bytes(Request("/encode", "image/png", b"\x89PNG"), "X-A: b")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-Model: a@b\r\n"
INTERIM = b"HTTP/1.1 102 Processing\r\n\r\n"
Serve = Callable[[socket.socket], None]


@contextmanager
def server(serve: Serve) -> Iterator[int]:
    """Answers one connection as told, then closes it."""

    def accept(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            serve(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=(listener,))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join()


def asked(serve: Serve, *, before: Callable[[Connection], object] = id) -> Answer:
    async def ask(port: int) -> Answer:
        connection = await connect(port)
        before(connection)
        try:
            return await connection.ask(REQUEST)
        finally:
            connection.close()

    with server(serve) as port, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(ask(port))


def peek(connection: socket.socket) -> None:
    """Wait until the request is there, and leave it unread."""
    assert connection.recv(1, socket.MSG_PEEK)


def says(pieces: list[bytes], connection: socket.socket) -> None:
    assert connection.recv(1000) == REQUEST
    for piece in pieces:
        connection.sendall(piece)
        time.sleep(0.02)  # so that pieces arrive apart, most of the time


def test_a_request_says_what_it_carries() -> None:
    assert REQUEST == (
        b"POST /encode HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: b\r\n"
        b"Content-Type: image/png\r\nContent-Length: 4\r\n\r\n\x89PNG"
    )
    assert as_bytes(Request("/sample")) == b"GET /sample HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.mark.parametrize("cut", [1, 12, len(HEAD), len(HEAD) + 2, len(HEAD) + 3])
def test_an_answer_is_whole_however_it_comes(cut: int) -> None:
    whole = HEAD + b"\r\nabc"
    found = asked(partial(says, [whole[:cut], whole[cut:]]))
    assert (found.status, found.body) == (200, b"abc")
    assert (found.header("x-model"), found.header("retry-after")) == ("a@b", None)


def test_an_answer_that_was_not_modified_has_no_body() -> None:
    found = asked(partial(says, [b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n"]))
    assert (found.status, found.body) == (304, b"")


def test_what_the_server_read_and_did_not_answer_is_lost() -> None:
    with pytest.raises(Unanswered, match=r"^lost$"):
        asked(partial(says, []))


def test_what_is_said_before_an_answer_is_none() -> None:
    found = asked(partial(says, [INTERIM, INTERIM + HEAD + b"\r\nabc"]))
    assert (found.status, found.body) == (200, b"abc")


@pytest.mark.parametrize("part", [b"H", INTERIM, HEAD, HEAD + b"\r\nab"])
def test_what_the_server_answered_in_part_is_lost(part: bytes) -> None:
    with pytest.raises(Unanswered, match=r"^lost$"):
        asked(partial(says, [part]))


def test_what_the_server_left_unread_is_not_lost() -> None:
    with pytest.raises(Unanswered, match=r"^not read$"):
        asked(peek)


def test_what_is_sent_to_a_server_that_has_closed_is_not_lost() -> None:
    """It closes at once, and the client hears of it only after it has sent."""
    closed = threading.Event()

    def close(connection: socket.socket) -> None:
        connection.close()
        closed.set()

    with pytest.raises(Unanswered, match=r"^not read$"):
        asked(close, before=lambda _: closed.wait(20))


def test_what_is_asked_on_a_connection_that_is_known_to_be_closed_is_not_lost() -> None:
    with pytest.raises(Unanswered, match=r"^not read$"):
        asked(lambda _: None, before=Connection.close)


def test_a_connection_that_the_server_wants_closed_is_closed() -> None:
    async def ask(port: int) -> bool:
        connection = await connect(port)
        await connection.ask(REQUEST)
        return connection.is_open

    answer = HEAD + b"Connection: close\r\n\r\nabc"
    with server(partial(says, [answer])) as port, asyncio.Runner() as runner:
        assert not runner.run(ask(port))
