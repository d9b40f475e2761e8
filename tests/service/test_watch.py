"""Engines that will not answer any more, and those that only look so."""

import asyncio
import subprocess
import sys
from typing import Any

import httpx
import numpy as np
import pytest

from service import watch
from service.app import create_app
from service.errors import OutOfMemory
from service.settings import Settings
from tests.processes import begun
from tests.service.conftest import Bundles

# A process whose decoder does not do what it did at the start, and which soon sees that.
SPOILT = """
import sys, threading
from pathlib import Path
import uvicorn
from service import lane
from service.app import create_app
from service.settings import Settings

lane.loop_budget_us = lambda _cores: -1.0
app = create_app(Settings(bundles=(Path(sys.argv[1]),), wedge_timeout_s=1))
def stuck(*_rows):
    threading.Event().wait()

def lost(*_rows):
    raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

app.state.deployment.models.default.decoder.run = globals()[sys.argv[2]]
server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
started = server.startup

async def told(sockets=None):
    await started(sockets)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)

server.startup = told
server.run()
"""


def test_a_process_whose_engine_is_stuck_ends(bundles: Bundles) -> None:
    command = [sys.executable, "-c", SPOILT, str(bundles.colour), "stuck"]
    with begun(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        with pytest.raises((httpx.NetworkError, httpx.ProtocolError)):
            httpx.get(f"{url}/sample", timeout=20)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "a run of a graph does not end; this process ends, and with it what it has accepted" in said


def test_a_process_whose_engine_fails_on_everything_ends(bundles: Bundles) -> None:
    command = [sys.executable, "-c", SPOILT, str(bundles.colour), "lost"]
    with begun(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        assert [httpx.get(f"{url}/sample", timeout=20).status_code for _ in range(3)] == [500, 500, 500]
        _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    label = create_app(Settings(bundles=(bundles.colour,))).state.deployment.models.default.label
    assert f"decoder.onnx of {label} fails on what it ran at the start; this process ends, and with it" in said


def test_a_graph_that_fails_on_what_was_sent_is_not_taken_for_one_that_fails_on_everything(bundles: Bundles) -> None:
    app = create_app(Settings(bundles=(bundles.colour,)))
    model = app.state.deployment.models.default
    run, looks = model.decoder.run, 0

    def touchy(rows: np.ndarray, **options: Any) -> Any:
        nonlocal looks
        if rows.any():
            raise RuntimeError("it does not like these")
        looks += 1
        return run(rows, **options)

    async def scenario() -> None:
        model.decoder.run = touchy
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://here", timeout=30) as http:
            for asked in range(1, 5):
                assert (await http.get("/sample")).status_code == 500
                assert await model.failing_graph() is None
                assert looks == asked // 3, "once three in a row have failed, and again after three more"
            model.decoder.run = run
            assert (await http.get("/sample")).status_code == 200

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [OutOfMemory("the device has no memory"), RuntimeError("out of order")])
def test_a_graph_that_has_no_memory_now_is_not_taken_for_one_that_fails_on_everything(
    bundles: Bundles, error: Exception
) -> None:
    model = create_app(Settings(bundles=(bundles.colour,))).state.deployment.models.default

    def failing(_rows: np.ndarray) -> Any:
        raise error

    async def scenario() -> str | None:
        model.encoder.run = failing
        image = np.zeros((1, 6, 5, 3), np.uint8)
        await asyncio.gather(*[_failed(model.encoder.submit(image)) for _ in range(2)])
        assert await model.failing_graph() is None, "too few to tell"
        await _failed(model.encoder.submit(image))
        graph: str | None = await model.failing_graph()
        return graph

    assert asyncio.run(scenario()) == (None if isinstance(error, OutOfMemory) else "encoder.onnx")


async def _failed(reply: asyncio.Future[Any]) -> None:
    with pytest.raises((OutOfMemory, RuntimeError)):
        await reply


def test_a_process_that_was_stopped_for_a_while_is_not_taken_for_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its run looks as if it had taken all that while, until it has had time to end."""
    looks = iter([True, False, True, False, True, True, False])

    class Stopped:
        models = ()

        @property
        def is_wedged(self) -> bool:
            return next(looks)

    class Ended(Exception):
        pass

    def end(_status: int) -> None:
        raise Ended

    monkeypatch.setattr(watch, "_EVERY_S", 0)
    monkeypatch.setattr(watch.os, "_exit", end)
    monkeypatch.setattr(watch.logging, "shutdown", lambda: None)
    stopped = Stopped()
    with pytest.RaisesGroup(Ended):
        asyncio.run(watch.watch(lambda: stopped))  # type: ignore[arg-type]
    assert list(looks) == [False], "it ended at the second look in a row"


def test_what_a_process_was_stopped_for_is_not_taken_of_the_time_of_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its looks come a second apart, but for one, an hour later."""
    times = iter([0.0, 1.0, 2.0, 3602.0, 3603.0])
    forgiven: list[float] = []

    class Lane:
        def forgive(self, seconds: float) -> None:
            forgiven.append(seconds)

    class Running:
        models, lane, is_wedged = (), Lane(), False

    async def no_time(_seconds: float) -> None:
        pass

    monkeypatch.setattr(watch, "perf_counter", lambda: next(times))
    monkeypatch.setattr(watch.asyncio, "sleep", no_time)
    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(watch._for_a_run_that_does_not_end(Running))  # type: ignore[arg-type]  # noqa: SLF001
    assert forgiven == [pytest.approx(3599)]
