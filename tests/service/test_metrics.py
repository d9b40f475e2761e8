"""/metrics, read by Prometheus' own parser: what is counted, under which labels, over how many processes."""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.routing import Route

from service.app import create_app
from service.errors import PROBLEMS
from service.observation.metrics import OTHER
from service.settings import Settings
from tests.service.keyring import lines, tokens, write
from tests.service.linear import Bundles
from tests.service.wire import form, pixels
from tests.serving import in_process, serving
from tests.test_workers import workers
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    """Each sample's value, by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


def scraped(app: FastAPI) -> Samples:
    async def scrape() -> str:
        async with in_process(app) as client:
            return (await client.get("/metrics")).text

    return parsed(asyncio.run(scrape()))


def asked(app: FastAPI, *requests: tuple[str, str]) -> Samples:
    """What is counted after these requests."""

    async def ask() -> None:
        async with in_process(app) as client:
            for method, url in requests:
                await client.request(method, url)

    asyncio.run(ask())
    return scraped(app)


def test_it_is_prometheus_text_and_kept_by_no_cache(client: httpx.Client) -> None:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert client.head("/metrics").status_code == 200
    assert parsed(answer.text)


@pytest.mark.parametrize(
    ("method", "url", "route", "code", "reason"),
    [
        ("GET", "/sample?seed=1", "/sample", "200", None),
        ("HEAD", "/sample?seed=1", "/sample", "200", None),
        ("GET", "/sample?n=0", "/sample", "422", "invalid"),
        ("GET", "/sample?seed=1&n=9", "/sample", "413", "too-large"),
        ("PUT", "/sample", "/sample", "405", "method-not-allowed"),
        ("GET", "/health/live", "/health/live", "200", None),
        ("GET", "/models/colour", "/models/{name}", "200", None),
        ("GET", "/models/none", "/models/{name}", "404", "not-found"),
        ("GET", "/docs", "/docs", "200", None),
        ("GET", "/docs/assets/swagger-ui.css", OTHER, "200", None),
        ("GET", "/", "/", "307", None),
        ("GET", "/secret/path", OTHER, "404", "not-found"),
    ],
)
def test_every_answer_is_counted_by_route_and_code(
    bundles: Bundles, method: str, url: str, route: str, code: str, reason: str | None
) -> None:
    app = create_app(Settings(bundles=(bundles.colour,), max_request_rows=8))
    samples = asked(app, (method, url))
    assert value(samples, "vaeserve_requests_total", route=route, code=code) == 1
    assert value(samples, "vaeserve_request_seconds_count", route=route) == 1
    assert value(samples, "vaeserve_request_seconds_sum", route=route) > 0
    rejected = {problem.kind: value(samples, "vaeserve_rejected_total", reason=problem.kind) for problem in PROBLEMS}
    assert rejected == {problem.kind: float(problem.kind == reason) for problem in PROBLEMS}


def test_labels_are_of_a_closed_list_whatever_is_asked_for(app: FastAPI) -> None:
    samples = asked(
        app, *[("GET", f"/{name}") for name in ("a", "b", "models/x", "models/y", "sample/1", "sample?q=1")]
    )
    known = {route.path for route in app.routes if isinstance(route, Route)} | {OTHER}
    routes = {dict(labels)["route"] for name, labels in samples if name == "vaeserve_requests_total"}
    assert routes == {OTHER, "/models/{name}", "/sample"} <= known


def test_what_a_guard_refuses_is_counted_under_its_route_too(bundles: Bundles, tmp_path: Path) -> None:
    keys = write(tmp_path / "keys.toml", lines(tokens("reader")))
    app = create_app(Settings(bundles=(bundles.colour,), api_keys_file=keys, open_metrics=True))
    samples = asked(app, ("GET", "/models/colour"), ("POST", "/models/colour/reload"), ("GET", "/nowhere"))
    for route in ("/models/{name}", "/models/{name}/reload", OTHER):
        assert value(samples, "vaeserve_requests_total", route=route, code="401") == 1


def test_a_failure_is_counted_as_500_of_its_route(app: FastAPI) -> None:
    def broken(*_rows: object) -> Any:
        raise RuntimeError("broken")

    app.state.deployment.models.default.decoder.run = broken
    samples = asked(app, ("GET", "/sample?seed=1"))
    assert value(samples, "vaeserve_requests_total", route="/sample", code="500") == 1
    assert value(samples, "vaeserve_rejected_total", reason="internal") == 1
    assert value(samples, "vaeserve_failed_runs_total") == 1
    assert value(samples, "vaeserve_requests_in_progress") == 1, "the scrape itself"


def test_a_caller_who_left_is_counted_as_499_and_answered_nothing(app: FastAPI) -> None:
    sent: list[object] = []

    async def left() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/encode", "query_string": b"", "headers": []}
    asyncio.run(app(scope, left, send))  # type: ignore[arg-type]
    assert sent == []
    samples = scraped(app)
    assert value(samples, "vaeserve_requests_total", route="/encode", code="499") == 1
    assert value(samples, "vaeserve_rejected_total", reason="internal") == 0


def test_stages_and_batches_are_those_of_server_timing(app: FastAPI) -> None:
    async def ask() -> list[str]:
        async with in_process(app) as client:
            image = form(pixels(6, (6, 5, 3)))
            answers = [await client.get("/sample?seed=1&n=3"), await client.post("/reconstruct", files=image[:4])]
            assert [answer.status_code for answer in answers] == [200, 200]
            return [answer.headers["server-timing"] for answer in answers]

    told = asyncio.run(ask())
    samples = scraped(app)
    for stage in ("decode", "queue", "run", "encode"):
        seconds = sum(float(line.partition(f"{stage};dur=")[2].partition(",")[0]) for line in told) / 1000
        assert value(samples, "vaeserve_stage_seconds_count", stage=stage) == 2
        assert value(samples, "vaeserve_stage_seconds_sum", stage=stage) == pytest.approx(seconds, abs=2e-6)
    # Three rows decoded; four encoded and four decoded.
    assert value(samples, "vaeserve_batch_rows_count") == value(samples, "vaeserve_batch_seconds_count") == 3
    assert value(samples, "vaeserve_batch_rows_sum") == 11
    assert value(samples, "vaeserve_batch_rows_bucket", le="2.0") == 0
    assert value(samples, "vaeserve_batch_rows_bucket", le="4.0") == 3


def test_buckets_hold_what_is_no_greater_than_their_bound_and_add_up(app: FastAPI) -> None:
    for seconds in (0.00004, 0.00005, 0.000051, 0.3, 1000.0):
        app.state.metrics.batch_s.observe(seconds)
    samples = scraped(app)
    counts = [
        value(samples, "vaeserve_batch_seconds_bucket", le=bound)
        for bound in ("5e-05", "0.0001", "0.2", "0.5", "100.0", "+Inf")
    ]
    assert counts == [2, 3, 3, 4, 4, 5]
    assert value(samples, "vaeserve_batch_seconds_count") == 5
    assert value(samples, "vaeserve_batch_seconds_sum") == pytest.approx(1000.300141)


def test_rows_that_wait_are_seen_without_waiting_for_them(app: FastAPI) -> None:
    """The engine holds still while Prometheus reads."""
    decoder = app.state.deployment.models.default.decoder
    run: Callable[..., Any] = decoder.run
    go_on = threading.Event()

    def held(*rows: np.ndarray) -> Any:
        assert go_on.wait(30)
        return run(*rows)

    async def scenario() -> tuple[str, str]:
        async with in_process(app) as client:
            waiting = [asyncio.create_task(client.get(f"/sample?seed=1&n={n}")) for n in (3, 4)]
            while queued_rows() < 7:  # noqa: ASYNC110  # nobody says when rows have come
                await asyncio.sleep(0)
            during = (await client.get("/metrics")).text
            go_on.set()
            for answer in await asyncio.gather(*waiting):
                assert answer.status_code == 200
            return during, (await client.get("/metrics")).text

    def queued_rows() -> float:
        (family,) = [family for family in app.state.metrics.families() if family.name == "vaeserve_queue_rows"]
        return family.samples[0].value

    decoder.run = held
    during, after = map(parsed, asyncio.run(scenario()))
    assert value(during, "vaeserve_queue_rows") == 7
    assert value(during, "vaeserve_requests_in_progress") == 3
    assert value(during, "vaeserve_queue_limit_rows") == value(after, "vaeserve_queue_limit_rows") == 8
    assert value(after, "vaeserve_queue_rows") == 0
    assert value(after, "vaeserve_requests_in_progress") == 1


def test_the_version_is_not_looked_up_again_by_each_scrape(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.routes.metrics.version", lambda _name: 1 / 0)
    assert value(scraped(app), "vaeserve_build_info", version=app.version) == 1


def test_each_model_is_told_with_its_digest_and_where_it_runs(client: httpx.Client) -> None:
    samples = parsed(client.get("/metrics").text)
    found = [dict(labels) for name, labels in samples if name == "vaeserve_model_info"]
    expected = [
        {"model": model["name"]} | {name: model[name] for name in ("digest", "provider", "precision")}
        for model in client.get("/models").json()["models"]
    ]
    assert found == expected
    assert len(found) == 2


BODY = b'{"n": 2, "seed": 5}'


def begun(url: str) -> socket.socket:
    """A request whose head a worker has read, as its 100 Continue says."""
    parts = httpx.URL(url)
    caller = socket.create_connection((parts.host, parts.port or 0), timeout=30)
    caller.sendall(
        b"POST /sample HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(BODY)
    )
    assert caller.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    return caller


def is_finished(caller: socket.socket) -> bool:
    """Whether there is still somebody to answer it."""
    with caller:
        try:
            caller.sendall(BODY)
            return caller.recv(1000).startswith(b"HTTP/1.1 200 ")
        except OSError:
            return False


def test_two_workers_count_together_and_what_a_dead_one_held_is_gone() -> None:
    """Whichever worker a connection comes to, and whichever is asked."""

    def told() -> Samples:
        return parsed(httpx.get(f"{server.url}/metrics", timeout=30).text)

    with serving(["--workers", "2"]) as server:
        for _ in range(16):
            assert httpx.get(f"{server.url}/sample?seed=5&n=3", timeout=30).status_code == 200
        for _ in range(8):
            samples = told()
            assert value(samples, "vaeserve_requests_total", route="/sample", code="200") == 16
            assert value(samples, "vaeserve_batch_rows_sum") == 48
            assert value(samples, "vaeserve_workers") == 2
            assert value(samples, "vaeserve_queue_limit_rows") == Settings().max_queue_rows
            for place in "01":
                assert value(samples, "process_resident_memory_bytes", worker=place) > 1e6
        callers = [begun(server.url) for _ in range(8)]
        assert value(told(), "vaeserve_requests_in_progress") == 9, "the scrape too"
        os.kill(workers(server)[0], signal.SIGKILL)
        until(lambda: "".join(server.said).count("Application startup complete") == 3)
        samples = told()
        finished = sum(map(is_finished, callers))
        assert value(samples, "vaeserve_requests_in_progress") == finished + 1
        assert value(samples, "vaeserve_workers") == 2
        samples = told()
        assert value(samples, "vaeserve_requests_total", route="/sample", code="200") == 16 + finished
        assert value(samples, "vaeserve_batch_rows_sum") == 48 + 2 * finished


def test_workers_of_auto_count_together_too() -> None:
    """The first of them loaded twice, once to find out how many there shall be."""
    with serving(["--workers", "auto"]) as server:
        for _ in range(16):
            assert httpx.get(f"{server.url}/sample?seed=5", timeout=30).status_code == 200
        for _ in range(8):
            samples = parsed(httpx.get(f"{server.url}/metrics", timeout=30).text)
            assert value(samples, "vaeserve_requests_total", route="/sample", code="200") == 16


def test_every_metric_stands_in_the_operations_page_and_no_other(client: httpx.Client) -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = page.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    listed = {line.split("`")[1] for line in section.splitlines() if line.startswith("| `")}
    exposed = {line.split()[2] for line in client.get("/metrics").text.splitlines() if line.startswith("# TYPE ")}
    assert {name.partition("{")[0] for name in listed} == exposed
