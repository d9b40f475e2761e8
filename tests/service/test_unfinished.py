"""What a process that was told to end has no time left for is told so, and not dropped or answered a bare 500."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from service.access.keys import Scope
from service.app import create_app
from service.processes import ports
from service.processes.server import Server
from service.settings import Settings
from tests.service.keyring import bearer, lines, tokens, write
from tests.service.linear import Bundles
from tests.service.test_errors import problem
from tests.service.test_hostile import get, post
from tests.serving import in_process
from tests.test_workers import listening, started
from tests.waiting import WITHIN_S

HELD = tokens("admin")
DETAIL = "shutdown: this process has no time left to finish the request, another one may take it"


def assert_is_told(received: bytes) -> None:
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nconnection: close" in head
    assert b"\r\nx-request-id: " in head
    document = json.loads(body)
    assert (document["type"], document["detail"]) == ("urn:vaeserve:problem:not-ready", DETAIL)


def begun(url: str) -> socket.socket:
    """A request whose head the server has read, as its 100 Continue says, and half of its body."""
    address = urlsplit(url)
    caller = socket.create_connection((address.hostname or "", address.port or 0), timeout=WITHIN_S)
    caller.sendall(post("/sample", b"", lines=("Content-Length: 11", "Expect: 100-continue")))
    assert caller.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    caller.sendall(b'{"see')
    return caller


@pytest.mark.parametrize("count", [1, 2])
def test_a_request_whose_body_does_not_come_in_time_is_503(count: int) -> None:
    with started("--port", 0, "--workers", count, "--shutdown-timeout-s", 3) as process:
        url, _ = listening(process)
        callers = [begun(url) for _ in range(4)]
        process.terminate()
        for caller in callers:
            with caller:
                assert_is_told(b"".join(iter(lambda caller=caller: caller.recv(2**16), b"")))  # type: ignore[misc]
        said = process.communicate(timeout=WITHIN_S)[1]
        assert process.returncode == 0
        assert "Traceback" not in said


def test_a_request_whose_rows_still_run_is_503_at_once_and_counted(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = app.state.deployment.models.default.decoder
    run, began, go_on = decoder.run, threading.Event(), threading.Event()

    def held(*rows: np.ndarray) -> Any:
        began.set()
        assert go_on.wait(WITHIN_S)
        return run(*rows)

    decoder.run = held

    async def scenario() -> bytes:
        sockets = ports.take("127.0.0.1", 0)
        is_listening = asyncio.Event()
        settings = Settings(shutdown_pause_s=0, shutdown_timeout_s=2)
        server = Server(app, settings, on_listening=is_listening.set)
        serving = asyncio.create_task(server.serve(sockets))
        await is_listening.wait()
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(ports.url(sockets)).port)
        writer.write(get("/sample?seed=1"))
        await asyncio.to_thread(began.wait, WITHIN_S)
        # As `leave` does, but for the alarm that would end this process.
        app.state.draining = server.should_exit = True
        server.config.encoded_headers.append((b"connection", b"close"))
        received = await reader.read()
        assert not go_on.is_set(), "before the run was over"
        go_on.set()
        writer.close()
        await serving
        return received

    assert_is_told(asyncio.run(scenario()))
    (counted,) = [family for family in app.state.metrics.families() if family.name == "vaeserve_requests"]
    assert {sample.labels["code"] for sample in counted.samples} == {"503"}


@pytest.mark.parametrize("path", ["/sample", "/models/colour/reload"])
@pytest.mark.parametrize("draining", [True, False])
def test_only_the_end_of_the_process_is_told(bundles: Bundles, tmp_path: Path, path: str, draining: bool) -> None:
    """Whoever else takes a request back is obeyed."""
    keys = write(tmp_path / "keys.toml", lines(HELD, scopes=(Scope.READ, Scope.ADMIN)))
    app = create_app(Settings(bundles=(bundles.colour,), api_keys_file=keys), cores=1)
    app.state.draining = draining
    began = asyncio.Event()

    async def never(*_: object) -> Any:
        began.set()
        await asyncio.Event().wait()

    app.state.reload = never

    async def scenario() -> httpx.Response:
        async with in_process(app, headers=bearer(HELD["admin"])) as client:
            asking = asyncio.create_task(client.post(path, content=body()))
            await began.wait()
            asking.cancel()
            return await asking

    async def body() -> AsyncIterator[bytes]:
        if path == "/sample":
            await never()
        yield b""

    if draining:
        assert problem(asyncio.run(scenario()), 503, "not-ready")["detail"] == DETAIL
    else:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(scenario())
