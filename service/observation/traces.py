"""Traces by OpenTelemetry: a span for each request, as FastAPI makes it, and one for each of its stages.

Where they are sent, how many of them and under which name is said by OpenTelemetry's own variables (`OTEL_…`).
"""

import asyncio
import os
import re
from collections.abc import Iterable
from importlib.metadata import version
from threading import Thread
from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from starlette.types import Scope

from service.observation.record import Record

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

# Probes and scrapes come every few seconds and tell nothing of a request.
_UNTRACED = frozenset({"/health/live", "/health/ready", "/metrics"})

# How long the end of the process waits for the last spans to be sent.
_FLUSH_S = 0.5

# Version, trace, span, flags.
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}\b.*")


class Traces:
    """The traces of one process."""

    def __init__(self) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        named = {
            "service.name": os.environ.get("OTEL_SERVICE_NAME") or "vaeserve",
            "service.version": version("vaeserve"),
        }
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_exporter()))
        self._tracer = self._provider.get_tracer("vaeserve", version("vaeserve"))

    def tell(self, record: Record, scope: Scope, *, route: str | None) -> None:
        """Note on the span of a request, before it ends with the answer, what was asked for and where the time went,
        and on the record which trace it is. Stages are known only now; their spans are dated back.
        """
        span = trace.get_current_span()
        if (context := span.get_span_context()).is_valid:
            record.trace_id = f"{context.trace_id:032x}"
        if not span.is_recording():
            return
        if route is not None:  # a verb's request does not pass FastAPI's router, which would say so
            span.update_name(f"{scope['method']} {route}")
            span.set_attribute("http.route", route)
        if scope["query_string"]:  # which may be anything, a key in the wrong place too
            span.set_attribute("url.query", "")
        span.set_attribute("vaeserve.request_id", record.request_id)
        if record.model is not None:
            span.set_attribute("vaeserve.model", record.model)
        if record.timing is not None:
            epoch_ns = time_ns() - perf_counter_ns()
            for name, began, ended in record.timing.spans():
                child = self._tracer.start_span(name, start_time=epoch_ns + int(1e9 * began))
                child.end(epoch_ns + int(1e9 * ended))

    async def close(self) -> None:
        """Send what has not been sent. A collector that is gone does not keep the process."""
        sending = Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        await asyncio.to_thread(sending.join, _FLUSH_S)

    @property
    def telemetry(self) -> TelemetryConfig:
        """What FastAPI is told to do."""
        return {**OFF, "tracing": True, "tracer_provider": self._provider, "exclude": _is_untraced}


# FastAPI looks for providers at each request unless told that there are none.
OFF: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}


def sent_trace_id(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The id of the trace that a request belongs to, as its caller says.

    Source:  W3C Trace Context, section 3.2
    """
    for name, value in headers:
        if name == b"traceparent":
            sent = _TRACEPARENT.fullmatch(value)
            return sent[1].decode() if sent else None
    return None


def _exporter() -> "SpanExporter":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _is_untraced(scope: Scope) -> bool:
    return scope["path"] in _UNTRACED
