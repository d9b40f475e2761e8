"""Where traces are sent to: OpenTelemetry's own variables say it, and are looked at before anything is loaded."""

import os
import re
from collections.abc import Iterable

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_ADDRESS = re.compile(r"https?://[^/\s]")


class BadCollector(Exception):
    """Traces cannot be sent; the process stops with this sentence."""


def require() -> None:
    """Refuse an environment that could not send traces.

    Raises:  BadCollector
    """
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError as error:
        raise BadCollector(f"traces: {error.name} is not installed, expected vaeserve[traces]") from error
    protocol, protocol_name = _first(_PROTOCOLS)
    if protocol not in {"", _PROTOCOL}:
        raise BadCollector(f"{protocol_name}: got {protocol}, expected {_PROTOCOL}")
    endpoint, endpoint_name = _first(_ENDPOINTS)
    if not _ADDRESS.match(endpoint):
        got = endpoint or "nothing"
        raise BadCollector(f"{endpoint_name}: got {got}, expected a collector's address, as http://localhost:4318")


def _first(names: Iterable[str]) -> tuple[str, str]:
    """The value of the first of these variables that is set, and its name; else nothing, and the last name."""
    name = ""
    for name in names:
        if value := os.environ.get(name):
            return value, name
    return "", name
