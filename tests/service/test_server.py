"""The server of one process, beside what tests/test_workers.py asks of whole ones."""

import asyncio
import re
import threading
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI

from service.app import create_app
from service.processes import ports
from service.processes.server import Server
from service.settings import Settings

BODY = b'{"seed": 5}'
HEAD = (
    b"POST /sample HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(BODY)
)


def test_requests_that_were_accepted_one_behind_the_other_are_all_answered_by_a_process_that_leaves(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "_limit", lambda _server: None)  # which would end these tests
    monkeypatch.setattr("service.lane.loop_budget_us", lambda _cores: -1.0)
    gate, begun = threading.Event(), threading.Event()
    app = create_app(app.state.deployment.settings)
    decoder = app.state.deployment.models.default.decoder
    run = decoder.run

    def waiting(*rows: Any, **options: Any) -> Any:
        begun.set()
        assert gate.wait(20)
        return run(*rows, **options)

    decoder.run = waiting

    async def scenario() -> bytes:
        sockets = ports.take("127.0.0.1", 0)
        listening = asyncio.Event()
        server = Server(app, Settings(shutdown_pause_s=0), on_listening=listening.set)
        serving = asyncio.create_task(server.serve(sockets))
        await listening.wait()
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(ports.url(sockets)).port or 0)
        writer.write(b"".join(b"GET /sample?seed=%d HTTP/1.1\r\nHost: test\r\n\r\n" % seed for seed in range(3)))
        await asyncio.to_thread(begun.wait, 20)
        server.leave()
        gate.set()
        answers = await reader.read()
        writer.close()
        await serving
        return answers

    answers = asyncio.run(scenario())
    assert answers.count(b"HTTP/1.1 200 OK") == 3
    assert answers.count(b"connection: close") == 1


def test_each_connection_is_let_go_with_its_next_answer(app: FastAPI) -> None:
    """Of those that are released some wait for an answer, others have had one; one that comes later stays."""

    async def ask(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A request whose headers the server has read."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        return reader, writer

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection ends with the answer."""
        writer.write(BODY)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        (length,) = re.findall(rb"content-length: (\d+)", head)
        await reader.readexactly(int(length))
        is_last = b"\r\nconnection: close" in head
        assert not is_last or await reader.read() == b""
        return is_last

    async def scenario() -> list[bool]:
        sockets = ports.take("127.0.0.1", 0)
        listening = asyncio.Event()
        server = Server(app, Settings(), on_listening=listening.set)
        serving = asyncio.create_task(server.serve(sockets))
        await listening.wait()
        port = urlsplit(ports.url(sockets)).port or 0
        resting, busy = [await ask(port), await ask(port)]
        assert not await answer(*resting)
        server.release()
        later = await ask(port)
        resting[1].write(HEAD)
        assert await resting[0].readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        are_last = [await answer(*caller) for caller in (resting, busy, later)]
        for _, writer in (resting, busy, later):
            writer.close()
            await writer.wait_closed()
        server.should_exit = True
        await serving
        return are_last

    assert asyncio.run(scenario()) == [True, True, False]
