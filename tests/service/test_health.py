"""Probes, the first lines of the log, and where the root leads."""

import asyncio
import threading
from typing import Any

import httpx
import numpy as np
import pytest

from service.app import create_app
from service.settings import Settings
from tests.service.conftest import Bundles
from tests.serving import Server


@pytest.mark.parametrize(("path", "status"), [("/health/live", "live"), ("/health/ready", "ready")])
def test_a_probe_answers(client: httpx.Client, path: str, status: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.json() == {"status": status}
    assert answer.headers["cache-control"] == client.head(path).headers["cache-control"] == "no-store"


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


def test_the_process_says_what_it_serves_and_where_it_runs(server: Server) -> None:
    said = "".join(server.said)
    assert "model colour@" in said
    assert "6x5x3, latents 4, CPUExecutionProvider (onnxruntime " in said
    assert "model grey@" in said
    assert "28x28x1, latents 2x3x2" in said


def test_the_root_leads_to_the_documentation_whatever_stands_before_it(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.is_redirect
    assert answer.headers["location"] == "docs"  # behind a prefix too
