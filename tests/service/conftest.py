"""Two linear bundles, and real processes that serve them."""

import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings
from tests.service.linear import Linear, linear, write_linear

START_S = 30


@dataclass(frozen=True)
class Bundles:
    """Folders: `colour` holds 6×5×3 pictures and latents (4,), `grey` 28×28×1 and latents (2, 3, 2)."""

    colour: Path
    grey: Path

    @property
    def arguments(self) -> list[str]:
        return [str(self.colour), str(self.grey)]


@dataclass(frozen=True)
class Server:
    """A `vae-serve` process that answers, and what it has said so far."""

    process: subprocess.Popen[str]
    url: str
    said: list[str]


@pytest.fixture(scope="session")
def colour() -> Linear:
    return linear((6, 5, 3), (4,), seed=0)


@pytest.fixture(scope="session")
def grey() -> Linear:
    return linear((28, 28, 1), (2, 3, 2), seed=1)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory, colour: Linear, grey: Linear) -> Bundles:
    folder = tmp_path_factory.mktemp("bundles")
    write_linear(folder / "colour", colour)
    write_linear(folder / "grey", grey)
    return Bundles(folder / "colour", folder / "grey")


@pytest.fixture(scope="session")
def server(bundles: Bundles) -> Iterator[Server]:
    """The default model is `colour`; a batch holds 16 rows, so that tests cross its edge."""
    with serving([*bundles.arguments, "--max-batch-rows", "16"]) as running:
        yield running


@pytest.fixture(scope="session")
def server_url(server: Server) -> str:
    return server.url


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as http:
        yield http


@pytest.fixture(scope="session")
def tight(bundles: Bundles) -> Iterator[httpx.Client]:
    """A client of a process with tiny limits."""
    limits = {
        "--max-batch-rows": 4,
        "--max-request-rows": 8,
        "--max-queue-rows": 8,
        "--max-body-bytes": 4000,
        "--max-picture-pixels": 1000,
        "--max-answer-pixels": 600,
    }
    flags = [str(part) for pair in limits.items() for part in pair]
    with serving([*bundles.arguments, *flags]) as running, httpx.Client(base_url=running.url, timeout=30) as http:
        yield http


@pytest.fixture
def app(bundles: Bundles) -> FastAPI:
    """The application in this process, for what needs an engine that fails or waits."""
    return create_app(Settings(bundles=(bundles.colour, bundles.grey), max_batch_rows=4, max_queue_rows=8))


@contextmanager
def serving(arguments: Sequence[str]) -> Iterator[Server]:
    """A real process on a free port, ended as an orchestrator ends it."""
    command = [sys.executable, "-m", "service", *arguments, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        lines: queue.Queue[str | None] = queue.Queue()
        said: list[str] = []
        reader = threading.Thread(target=_listen, args=(process, lines, said), daemon=True)
        reader.start()
        try:
            yield Server(process, _url(lines, said), said)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            reader.join()
    # uvicorn finishes what it accepted, then ends by the very signal that it was sent.
    assert code in {0, -signal.SIGTERM}, "".join(said)
    assert not any("Traceback" in line for line in said), "".join(said)


def _listen(process: subprocess.Popen[str], lines: "queue.Queue[str | None]", said: list[str]) -> None:
    for line in process.stderr or ():
        said.append(line)
        lines.put(line)
    lines.put(None)


def _url(lines: "queue.Queue[str | None]", said: list[str]) -> str:
    while (line := lines.get(timeout=START_S)) is not None:
        _, found, rest = line.partition("running on ")
        if found:
            return rest.split()[0]
    raise AssertionError("did not start:\n" + "".join(said))


def in_process(app: FastAPI, **options: Any) -> httpx.AsyncClient:
    """A client of an application in this process, which gets its 500s instead of its exceptions."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://in-process", **options)
