"""Two linear bundles, and real processes that serve them."""

from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings
from tests.service.linear import Bundles, Linear, linear, write_linear
from tests.serving import Server, serving


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
