"""Spans of a request and its stages, by the SDK's own exporter; and over sockets, from a caller to a collector."""

import asyncio
import gzip
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import orjson
import pytest
from fastapi import FastAPI
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service.app import create_app
from service.observation import collector, traces
from service.observation.collector import BadCollector
from service.settings import Settings
from tests.processes import begun
from tests.service.linear import Bundles
from tests.service.wire import form, pixels
from tests.serving import in_process, stopped

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


def spans_of(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch, method: str, url: str, *, breaks: bool = False, **parts: Any
) -> tuple[httpx.Response, list[ReadableSpan]]:
    """The answer, and the spans that it left, in the order in which they ended."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(traces, "_exporter", lambda: exporter)
    app = create_app(Settings(bundles=(bundles.colour,), traces=True))
    if breaks:
        app.state.deployment.models.default.decoder.run = _broken

    async def ask() -> httpx.Response:
        async with in_process(app) as client:
            answer = await client.request(method, url, **parts)
        await app.state.traces.close()
        return answer

    return asyncio.run(ask()), list(exporter.get_finished_spans())


def _broken(*_rows: object) -> Any:
    raise RuntimeError("broken")


def ids(span: ReadableSpan) -> tuple[str, str, str | None]:
    """Trace, span and parent."""
    assert span.context
    parent = f"{span.parent.span_id:016x}" if span.parent else None
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}", parent


def test_a_request_has_a_span_with_a_child_for_each_stage(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = TRACEPARENT | {"x-request-id": "mine"}
    files = form(pixels(2, (6, 5, 3)))
    answer, spans = spans_of(bundles, monkeypatch, "POST", "/reconstruct", files=files, headers=headers)
    assert answer.status_code == 200
    *stages, request = spans
    assert [span.name for span in stages] == ["decode", "queue", "run", "queue", "run", "encode"]
    trace_id, span_id, parent = ids(request)
    assert (trace_id, parent) == (TRACE, PARENT), "the caller's trace goes on"
    assert {(ids(span)[0], ids(span)[2]) for span in stages} == {(TRACE, span_id)}
    assert request.name == "POST /reconstruct"
    assert request.kind is SpanKind.SERVER
    attributes = dict(request.attributes or {})
    assert attributes["http.route"] == "/reconstruct"
    assert attributes["http.response.status_code"] == 200
    assert attributes["vaeserve.request_id"] == "mine"
    assert attributes["vaeserve.model"] == answer.headers["x-model"]
    assert request.resource.attributes["service.name"] == "vaeserve"


def test_stages_follow_each_other_within_their_request(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    _, (*stages, request) = spans_of(bundles, monkeypatch, "GET", "/sample?seed=1")
    moments = [moment for span in stages for moment in (span.start_time, span.end_time)]
    assert len(moments) == 8
    assert all(moments)
    assert moments == sorted(moments)  # type: ignore[type-var]
    clock_ns = 1_000_000_000  # two clocks are read one after the other; a wrong one is off by years
    assert request.start_time - clock_ns <= moments[0]  # type: ignore[operator]
    assert moments[-1] <= request.end_time + clock_ns  # type: ignore[operator]


@pytest.mark.parametrize(
    ("url", "name", "status"),
    [
        ("/sample?n=0", "GET /sample", 422),
        ("/nothing/secret", "GET", 404),
        ("/models/colour", "GET /models/{name}", 200),
        ("/models/none", "GET /models/{name}", 404),
    ],
)
def test_a_span_is_named_by_its_route_and_a_refusal_has_no_stages(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch, url: str, name: str, status: int
) -> None:
    _, (request,) = spans_of(bundles, monkeypatch, "GET", url)
    assert request.name == name
    assert request.attributes is not None
    assert request.attributes["http.response.status_code"] == status
    assert request.status.status_code is StatusCode.UNSET


def test_the_span_of_a_failure_says_so(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, (request,) = spans_of(bundles, monkeypatch, "GET", "/sample?seed=1", breaks=True)
    assert answer.status_code == 500
    assert request.status.status_code is StatusCode.ERROR


@pytest.mark.parametrize("url", ["/health/live", "/health/ready", "/metrics"])
def test_probes_and_scrapes_are_not_traced(bundles: Bundles, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    answer, spans = spans_of(bundles, monkeypatch, "GET", url, headers=TRACEPARENT)
    assert answer.status_code == 200
    assert spans == []


def test_what_a_caller_does_not_want_recorded_is_not(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    answer, spans = spans_of(bundles, monkeypatch, "GET", "/sample?seed=1", headers=unsampled)
    assert answer.status_code == 200
    assert spans == []


def test_without_the_setting_there_are_no_traces(app: FastAPI) -> None:
    assert app.state.traces is None


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (f"00-{TRACE}-{PARENT}-01", TRACE),
        (f"cc-{TRACE}-{PARENT}-01-what-comes-later", TRACE),
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"00-{TRACE.upper()}-{PARENT}-01", None),
        (f"00-{TRACE}-{PARENT}", None),
        (f"00-{TRACE}-{PARENT}-01\n{TRACE}", None),
        ("", None),
    ],
)
def test_where_no_span_is_made_the_trace_is_the_callers(sent: str, expected: str | None) -> None:
    assert traces.sent_trace_id([(b"host", b"x"), (b"traceparent", sent.encode())]) == expected
    assert traces.sent_trace_id([]) is None


# What must be so before traces can be sent


def test_without_the_sdk_the_process_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(BadCollector) as refused:
        collector.require()
    assert str(refused.value) == "traces: opentelemetry.sdk.trace is not installed, expected vaeserve[traces]"


@pytest.mark.parametrize("endpoint", ["collector:4318", "http://", "ftp://collector", ""])
def test_an_address_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    with pytest.raises(BadCollector) as refused:
        collector.require()
    got = endpoint or "nothing"
    expected = "expected a collector's address, as http://localhost:4318"
    assert str(refused.value) == f"OTEL_EXPORTER_OTLP_ENDPOINT: got {got}, {expected}"


def test_another_protocol_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(BadCollector) as refused:
        collector.require()
    assert str(refused.value) == "OTEL_EXPORTER_OTLP_PROTOCOL: got grpc, expected http/protobuf"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    collector.require()


def test_the_process_does_not_start_without_a_collectors_address() -> None:
    assert stopped("--traces").startswith("OTEL_EXPORTER_OTLP_ENDPOINT: got nothing, expected a collector's address")


# Over sockets


@pytest.mark.parametrize("query", ["seed=1", "seed=1&key=5ecre7"])
def test_no_key_and_nothing_else_that_was_sent_is_in_a_span(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    sent = {"authorization": "Bearer 5ecre7", "cookie": "a=5ecre7", "user-agent": "5ecre7"}
    _, spans = spans_of(bundles, monkeypatch, "GET", f"/sample?{query}", headers=TRACEPARENT | sent)
    assert spans
    assert [span.to_json() for span in spans if "5ecre7" in span.to_json()] == []


@pytest.fixture
def collected() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """The address of a collector, and what it has been sent."""
    received: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()
        thread.join()


def test_a_process_sends_its_spans_and_logs_their_trace_in_json(
    bundles: Bundles, collected: tuple[str, list[ExportTraceServiceRequest]]
) -> None:
    endpoint, received = collected
    flags = ["--traces", "--access-log", "--log-format", "json", "--shutdown-pause-s", "0", "--port", "0"]
    command = [sys.executable, "-m", "service", str(bundles.colour), *flags]
    environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SERVICE_NAME": "pictures"}
    with begun(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stderr
        lines = []
        while "running on " not in (line := orjson.loads(process.stderr.readline()))["message"]:
            lines.append(line)
        url = line["message"].partition("running on ")[2].split()[0]
        answer = httpx.get(f"{url}/sample?seed=1", headers=TRACEPARENT)
        process.terminate()
        said, more = process.communicate(timeout=30)
    assert process.returncode == 0, more
    assert answer.status_code == 200
    assert any(line["message"].startswith("model colour@") for line in lines)
    assert all(orjson.loads(line)["level"] == "info" for line in more.splitlines())
    (noted,) = map(orjson.loads, said.splitlines())
    assert (noted["route"], noted["trace_id"]) == ("/sample", TRACE)
    resources = [resource for request in received for resource in request.resource_spans]
    names = {item.key: item.value.string_value for resource in resources for item in resource.resource.attributes}
    assert names["service.name"] == "pictures"
    spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    assert sorted(span.name for span in spans) == ["GET /sample", "decode", "encode", "queue", "run"]
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    parents = {span.name: span.parent_span_id.hex() for span in spans}
    assert parents["GET /sample"] == PARENT


def test_a_collector_that_is_gone_does_not_keep_the_process(bundles: Bundles) -> None:
    """The exporter would try for ten seconds; the process would be ended before."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
    flags = ["--traces", "--shutdown-pause-s", "0", "--shutdown-timeout-s", "4", "--port", "0"]
    command = [sys.executable, "-m", "service", str(bundles.colour), *flags]
    environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": nobody}
    with begun(command, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stderr
        while "running on " not in (line := process.stderr.readline()):
            assert line, "it did not start"
        url = line.partition("running on ")[2].split()[0]
        assert httpx.get(f"{url}/sample?seed=1").status_code == 200
        process.terminate()
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 0, said
