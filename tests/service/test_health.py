import asyncio
import subprocess
import sys
import threading
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

import service.app
from service.app import create_app
from service.settings import Settings
from tests.processes import begun
from tests.service.conftest import Bundles
from tests.serving import Server

# A process whose decoder never comes back, and which soon takes that for what it is.
STUCK = """
import sys, threading
from pathlib import Path
import uvicorn
from service import lane
from service.app import create_app
from service.settings import Settings

lane.loop_budget_us = lambda _cores: -1.0
app = create_app(Settings(bundles=(Path(sys.argv[1]),), wedge_timeout_s=1))
app.state.deployment.models.default.decoder.run = lambda *_rows: threading.Event().wait()
server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
started = server.startup

async def told(sockets=None):
    await started(sockets)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)

server.startup = told
server.run()
"""


@pytest.mark.parametrize(("path", "status"), [("/health/live", "live"), ("/health/ready", "ready")])
def test_a_probe_answers(client: httpx.Client, path: str, status: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.json() == {"status": status}
    assert client.head(path).status_code == 200


def test_a_process_whose_engine_is_stuck_is_not_alive(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.lane.loop_budget_us", lambda _cores: -1.0)
    app = create_app(Settings(bundles=(bundles.colour,), wedge_timeout_s=1))
    gate, decoder = threading.Event(), app.state.deployment.models.default.decoder
    run = decoder.run

    def waiting(rows: np.ndarray) -> Any:
        assert gate.wait(20)
        return run(rows)

    async def scenario() -> None:
        decoder.run = waiting
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here", timeout=30) as http:
            asked = asyncio.create_task(http.get("/sample"))
            async with asyncio.timeout(20):
                while (live := await http.get("/health/live")).status_code == 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert live.status_code == 503
            assert live.json()["type"] == "urn:vaeserve:problem:not-ready"
            assert live.json()["detail"] == "live: a run of a graph does not end, and this process does soon"
            gate.set()
            assert (await asked).status_code == 200
            assert (await http.get("/health/live")).status_code == 200

    asyncio.run(scenario())


def test_a_process_whose_engine_is_stuck_ends(bundles: Bundles) -> None:
    command = [sys.executable, "-c", STUCK, str(bundles.colour)]
    with begun(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        with pytest.raises((httpx.NetworkError, httpx.ProtocolError)):
            httpx.get(f"{url}/sample", timeout=20)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "a run of a graph does not end; this process ends, and with it what it has accepted" in said


def test_a_process_that_was_stopped_for_a_while_is_not_taken_for_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its run looks as if it had taken all that while, until it has had time to end."""
    looks = iter([True, False, True, False, True, True, False])

    class Stopped:
        @property
        def is_wedged(self) -> bool:
            return next(looks)

    class Ended(Exception):
        pass

    def end(_status: int) -> None:
        raise Ended

    monkeypatch.setattr(service.app, "_WATCH_S", 0)
    monkeypatch.setattr(service.app.os, "_exit", end)
    monkeypatch.setattr(service.app.logging, "shutdown", lambda: None)
    app = FastAPI()
    app.state.deployment = Stopped()
    with pytest.raises(Ended):
        asyncio.run(service.app._watch(app))  # noqa: SLF001
    assert list(looks) == [False], "it ended at the second look in a row"


def test_the_process_says_what_it_serves_and_where_it_runs(server: Server) -> None:
    said = "".join(server.said)
    assert "model colour@" in said
    assert "6x5x3, latents 4, CPUExecutionProvider (onnxruntime " in said
    assert "model grey@" in said
    assert "28x28x1, latents 2x3x2" in said


def test_the_root_leads_to_the_documentation(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.is_redirect
    assert answer.headers["location"] == "/docs"
