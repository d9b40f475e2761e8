"""One line for each request, to standard output."""

import asyncio
import logging
import sys
from collections.abc import Callable
from time import time
from typing import BinaryIO, Literal

import orjson
from starlette.types import Scope

from service.observation.logs import moment
from service.observation.record import Record
from service.observation.traces import sent_trace_id

logger = logging.getLogger("vaeserve")

# How long a line is held at most.
_HELD_S = 0.02

# What POSIX promises to write to a pipe as one piece, also where several workers share it.
_PIECE_BYTES = 4096

Line = dict[str, str | int | float]


class AccessLog:
    """Notes requests. Lines are held for a moment, so that many are written at once.

    What a line holds: what it is found by (request and trace id), what was asked for as far as our own names go
    (method, route, model, problem), the name of the key, and figures. Paths, queries, headers and bodies are not in it.
    """

    def __init__(self, form: Literal["text", "json"], *, stream: BinaryIO | None = None) -> None:
        self._stream = sys.stdout.buffer if stream is None else stream
        self._form: Callable[[Line], bytes] = _json if form == "json" else _text
        self._lines: list[bytes] = []
        self._bytes = 0

    def note(self, scope: Scope, record: Record, *, route: str, status: int, seconds: float) -> None:
        """The line of one request."""
        line: Line = {
            "time": moment(time()),
            "level": "error" if status >= 500 else "info",
            "method": scope["method"],
            "route": route,
            "status": status,
            "ms": _ms(seconds),
        }
        if record.timing:
            line["queue_ms"] = _ms(record.timing.queue_s)
            line["run_ms"] = _ms(record.timing.run_s)
            line["rows"] = record.timing.rows
        if record.model:
            line["model"] = record.model
        if record.problem:
            line["problem"] = record.problem
        if key := scope["state"].get("key"):
            line["key"] = key.name
        line["request_id"] = record.request_id
        if trace_id := record.trace_id or sent_trace_id(scope["headers"]):
            line["trace_id"] = trace_id
        self._write(self._form(line))

    def flush(self) -> None:
        """Write what is held; lines that cannot be written are lost."""
        if not self._lines:
            return
        held, self._lines, self._bytes = self._lines, [], 0
        try:
            self._stream.write(b"".join(held))
            self._stream.flush()
        except OSError as error:
            logger.error("access log: %d lines are lost: %s", len(held), error)  # noqa: TRY400  # the sentence is enough

    def _write(self, line: bytes) -> None:
        if self._bytes + len(line) > _PIECE_BYTES:
            self.flush()
        if not self._lines:
            asyncio.get_running_loop().call_later(_HELD_S, self.flush)
        self._lines.append(line)
        self._bytes += len(line)


def _ms(seconds: float) -> float:
    """Milliseconds, to the microsecond."""
    return int(1e6 * seconds) / 1000


def _json(line: Line) -> bytes:
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _text(line: Line) -> bytes:
    at, level, method, route, status, *_ = line.values()
    rest = " ".join([f"{name}={value}" for name, value in list(line.items())[5:]])
    return f"{at} {level:<8} {method} {route} {status} {rest}\n".encode()
