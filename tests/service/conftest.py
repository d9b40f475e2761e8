"""Linear bundles, and real processes that serve them."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from service import lane
from service.access import rates
from service.app import create_app
from service.bundle import read
from service.engine import Engine
from service.settings import Settings
from tests.service.clock import Clock
from tests.service.linear import Bundles, Linear, OpenLinear, fitted_prior, linear, open_linear, write_linear
from tests.serving import Server, serving


@pytest.fixture(autouse=True)
def _collected_as_ever() -> Iterator[None]:
    """A served application freezes what was loaded, and collects more seldom, for the life of its process."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


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
def engine(bundles: Bundles) -> Engine:
    """Of the default model, on one thread."""
    return Engine(read(bundles.colour), device="cpu", threads=1)


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


# Bundles that can more, or less, than those two.

KL_PER_DIMENSION = (0.1, 2.0, 0.5, 1.0, 0.0, 3.0, 0.5, 0.2, 4.0, 0.3)


@pytest.fixture(scope="session")
def full() -> Linear:
    return linear((6, 5, 3), (10,), seed=3)


@pytest.fixture(scope="session")
def autoencoder() -> Linear:
    return replace(linear((6, 5, 3), (4,), seed=4), family="autoencoder")


@pytest.fixture(scope="session")
def patches() -> OpenLinear:
    """Pictures of any size up to 64 × 64 with latents (2, h / 4, w / 4); 16 × 16 where nothing is said."""
    return open_linear()


@pytest.fixture(scope="session")
def kinds_folder(
    tmp_path_factory: pytest.TempPathFactory, full: Linear, autoencoder: Linear, patches: OpenLinear
) -> Path:
    """`full` is a vae with scorer, fitted prior and diagnostics; `autoencoder` has scorer and fitted prior, `bare` is
    the same without either; `patches` has a scorer and open sizes.
    """
    folder = tmp_path_factory.mktemp("kinds")
    spread = {"active_units": 9, "mu_min": -3.0, "mu_max": 3.0}
    diagnostics = {"kl_per_dimension": KL_PER_DIMENSION, **spread}
    write_linear(folder / "full", full, scorer=full.scorer(), fitted=fitted_prior(10), diagnostics=diagnostics)
    write_linear(folder / "autoencoder", autoencoder, scorer=autoencoder.scorer(), fitted=fitted_prior())
    write_linear(folder / "bare", autoencoder)
    write_linear(folder / "patches", patches, scorer=patches.scorer())
    return folder


@pytest.fixture(scope="session")
def kinds(kinds_folder: Path) -> Iterator[httpx.Client]:
    """A client of a process that serves them; `full` is the default."""
    folders = [str(kinds_folder / name) for name in ("full", "autoencoder", "bare", "patches")]
    flags = ["--max-batch-rows", "16", "--max-request-rows", "256"]
    with serving([*folders, *flags]) as running, httpx.Client(base_url=running.url, timeout=30) as http:
        yield http


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of rates, turned by the test."""
    turned = Clock()
    monkeypatch.setattr(rates, "monotonic", turned)
    return turned


@pytest.fixture
def app(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """The application in this process, for what needs an engine that fails or waits: in a thread, one run at a time."""
    monkeypatch.setattr(lane, "loop_budget_us", lambda _cores: -1.0)
    return create_app(Settings(bundles=(bundles.colour, bundles.grey), max_batch_rows=4, max_queue_rows=8), cores=1)
