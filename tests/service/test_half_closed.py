"""Callers who say no more but listen are answered; those who have left are noticed all the same."""

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import uvloop
from fastapi import FastAPI

from service.http import connections
from service.processes import ports
from service.processes.server import Server
from service.settings import Settings
from tests.service.test_hostile import PATIENCE_S, chunked, get, post
from tests.service.test_protocol import Wire, connected
from tests.service.wire import SAFETENSORS, latents, tensors

LAST = ("Connection: close",)


@pytest.fixture
def connection(server_url: str) -> Iterator[socket.socket]:
    url = urlsplit(server_url)
    with closing(socket.create_connection((url.hostname or "", url.port or 0), timeout=PATIENCE_S)) as connected:
        yield connected


def answers_after(connection: socket.socket, sent: bytes) -> list[tuple[bytes, bytes]]:
    """Head and body of each answer to these bytes, after which nothing is said; up to where the server closes."""
    connection.sendall(sent)
    connection.shutdown(socket.SHUT_WR)
    received = b"".join(iter(lambda: connection.recv(2**16), b""))
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        (length,) = [int(line.split()[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length: ")]
        found.append((head, rest[:length]))
        received = rest[length:]
    return found


def status(head: bytes) -> int:
    return int(head.split()[1])


@pytest.mark.parametrize(
    "sent",
    [
        get("/sample?seed=7"),
        get("/sample?seed=7", *LAST),
        b"GET /sample?seed=7 HTTP/1.0\r\n\r\n",
        post("/sample", b'{"seed": 7}'),
        post("/sample", b'b\r\n{"seed": 7}\r\n0\r\n\r\n', lines=("Transfer-Encoding: chunked",)),
    ],
    ids=["HTTP/1.1", "the last one", "HTTP/1.0", "length", "chunks"],
)
def test_who_says_no_more_after_a_request_is_answered(connection: socket.socket, sent: bytes) -> None:
    ((head, body),) = answers_after(connection, sent)
    assert status(head) == 200
    assert body.startswith(b"\x89PNG")


def test_who_says_no_more_after_several_requests_is_answered_to_all_in_order(connection: socket.socket) -> None:
    paths = ["/sample?seed=1&n=500", "/nothing", "/sample?seed=2"]
    found = answers_after(connection, b"".join(map(get, paths)))
    assert [status(head) for head, _ in found] == [200, 404, 200]


class Heard(Wire):
    """A transport that keeps what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = b""
        self.closed = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.heard += data

    def pause_reading(self) -> None:
        """A second request waits for the first one's answer."""

    def resume_reading(self) -> None:
        """Read on."""

    def close(self) -> None:
        self.closed.set()


def test_the_last_answer_to_who_says_no_more_says_that_it_is_the_last() -> None:
    async def main() -> bytes:
        protocol = connected(wire := Heard())
        protocol.data_received(get("/first") + get("/second"))
        assert protocol.eof_received(), "we stay"
        await wire.closed.wait()
        assert not protocol.eof_received(), "nothing is owed any more"
        return wire.heard

    first, second = asyncio.run(main()).split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert b"\r\nconnection: close\r\n" not in first
    assert b"\r\nconnection: close\r\n" in second


def test_an_answer_of_this_turn_of_the_loop_leaves_before_the_end_of_a_client_is_taken_for_good() -> None:
    async def main() -> tuple[bytes, bytes]:
        protocol = connected(wire := Heard())
        protocol.data_received(get("/"))
        while not protocol.cycle.response_complete:  # noqa: ASYNC110  there is nothing that tells
            await asyncio.sleep(0)
        before = wire.heard
        assert not protocol.eof_received(), "nothing is owed any more, and the loop closes"
        return before, wire.heard

    before, after = asyncio.run(main())
    assert before == b""
    assert after.endswith(bytes(100_000))


def test_a_large_answer_to_who_says_no_more_is_whole(connection: socket.socket) -> None:
    z = latents(3000, (4,))
    sent = post("/decode?format=safetensors", tensors(z=z), SAFETENSORS)
    ((head, body),) = answers_after(connection, sent)
    assert status(head) == 200
    assert len(body) > z.nbytes + 3000 * 6 * 5 * 3


@pytest.mark.parametrize(
    "rest", [b"GET /sam", post("/sample", b"", lines=("Content-Length: 5",))], ids=["half a head", "half a body"]
)
def test_what_is_whole_is_answered_and_what_is_cut_is_not(connection: socket.socket, rest: bytes) -> None:
    ((head, _),) = answers_after(connection, get("/sample?seed=1&n=500") + rest)
    assert status(head) == 200


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /sam", post("/decode", b"", lines=("Content-Length: 5",)), chunked(b"5\r\n12345\r\n")],
    ids=["nothing", "half a head", "no body", "half a body"],
)
def test_a_cut_request_is_answered_nothing_and_closed(connection: socket.socket, sent: bytes) -> None:
    assert answers_after(connection, sent) == []


def test_what_cannot_be_read_is_told_to_who_says_no_more(connection: socket.socket) -> None:
    (first, _), (second, document) = answers_after(
        connection, get("/sample?seed=1&n=500") + get("/", "X: " + "a" * 40_000)
    )
    assert (status(first), status(second)) == (200, 431)
    assert json.loads(document)["type"] == "urn:vaeserve:problem:head-too-large"


# While the engine holds still


class Held:
    """A server whose engine waits until it is told to go on."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.began, self._go_on = threading.Event(), threading.Event()
        decoder = app.state.deployment.models.default.decoder
        run = decoder.run

        def held(*rows: np.ndarray) -> Any:
            self.began.set()
            self._go_on.wait(PATIENCE_S)
            return run(*rows)

        decoder.run = held

    def go_on(self) -> None:
        self._go_on.set()

    def run(self, scenario: Callable[[int], Awaitable[None]], loops: Callable[[], asyncio.AbstractEventLoop]) -> None:
        async def serve() -> None:
            sockets = ports.take("127.0.0.1", 0)
            listening = asyncio.Event()
            server = Server(self.app, Settings(), on_listening=listening.set)
            serving = asyncio.create_task(server.serve(sockets))
            await listening.wait()
            try:
                await scenario(urlsplit(ports.url(sockets)).port or 0)
            finally:
                self.go_on()
                server.should_exit = True
                await serving

        with asyncio.Runner(loop_factory=loops) as runner:
            runner.run(serve())


@pytest.fixture
def held(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> Held:
    monkeypatch.setattr(connections, "_LOOK_EVERY_S", 0.02)
    return Held(app)


LOOPS = pytest.mark.parametrize("loops", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


@LOOPS
def test_who_waits_long_is_told_that_it_goes_on_and_answered(
    held: Held, loops: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def scenario(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(get("/sample?seed=1"))
        writer.write_eof()
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 102 Processing\r\n\r\n"
        await asyncio.sleep(0.2)  # looks pass by, and the caller stays
        held.go_on()
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert status(head) == 200
        assert body.startswith(b"\x89PNG")
        writer.close()

    held.run(scenario, loops)


@LOOPS
def test_who_speaks_http_1_0_is_told_nothing_before_the_answer(
    held: Held, loops: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def scenario(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /sample?seed=1 HTTP/1.0\r\n\r\n")
        writer.write_eof()
        await asyncio.to_thread(held.began.wait, PATIENCE_S)
        await asyncio.sleep(0.2)
        held.go_on()
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()

    held.run(scenario, loops)


@LOOPS
def test_who_has_left_is_noticed_while_the_engine_still_runs(
    held: Held, loops: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def scenario(port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(get("/sample?seed=1"))
        await asyncio.to_thread(held.began.wait, PATIENCE_S)
        writer.close()
        await writer.wait_closed()
        async with asyncio.timeout(PATIENCE_S):
            while _in_progress(held.app):  # noqa: ASYNC110  # nobody says when it was noticed
                await asyncio.sleep(0.01)

    held.run(scenario, loops)


def _in_progress(app: FastAPI) -> float:
    (family,) = [each for each in app.state.metrics.families() if each.name == "vaeserve_requests_in_progress"]
    return float(family.samples[0].value)
