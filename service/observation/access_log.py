"""One line for each request, to standard output."""

import asyncio
import logging
import os
import stat
import sys
from collections.abc import Callable
from errno import EAGAIN
from queue import SimpleQueue
from threading import Lock, Thread
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

# What is written at a time: the thread that writes wants the interpreter back after each piece. Of small ones POSIX
# promises that a pipe takes them as one piece, or not at all where it does not wait.
_PIECE_BYTES = 2**16
_WHOLE_PIECE_BYTES = 4096

# What waits for a reader that does not read: some 15,000 lines.
_MOST_WAITING_BYTES = 2**22

# What it is given to take the last ones.
_LAST_S = 1.0

Line = dict[str, str | int | float]

# What a line of text begins with, without its names.
_UNNAMED = frozenset({"time", "level", "method", "route", "status"})


class AccessLog:
    """Notes requests. Lines are held for a moment, so that many are written at once, by a thread: whoever reads them
    keeps no request waiting.

    What a line holds: what it is found by (request and trace id), what was asked for as far as our own names go
    (method, route, model, problem), the name of the key, and figures. Paths, queries, headers and bodies are not in it.
    """

    def __init__(
        self, form: Literal["text", "json"], *, stream: BinaryIO | None = None, is_shared: bool = False
    ) -> None:
        # Without a buffer, whose lock nobody would have at the end where a write does not come back.
        stream = getattr(sys.stdout.buffer, "raw", sys.stdout.buffer) if stream is None else stream
        self._writer = _Writer(stream)
        self._piece_bytes = _PIECE_BYTES if _takes_long_pieces(stream, is_shared=is_shared) else _WHOLE_PIECE_BYTES
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

    def close(self) -> None:
        """Write what is held, and wait for it, but not long."""
        self._flush()
        self._writer.finish()

    def _flush(self) -> None:
        if self._lines:
            held, self._lines, self._bytes = self._lines, [], 0
            self._writer.put(b"".join(held))

    def _write(self, line: bytes) -> None:
        if self._bytes + len(line) > self._piece_bytes:
            self._flush()
        if not self._lines:
            asyncio.get_running_loop().call_later(_HELD_S, self._flush)
        self._lines.append(line)
        self._bytes += len(line)


class _Writer:
    """A thread that writes pieces, from the first one on. What it cannot write is lost, and so are pieces beyond those
    that may wait; both are told.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._pieces: SimpleQueue[bytes | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._lock = Lock()
        self._waiting_bytes = self._lost_lines = 0

    def put(self, piece: bytes) -> None:
        """Write it soon."""
        with self._lock:
            if self._waiting_bytes + len(piece) > _MOST_WAITING_BYTES:
                self._lost_lines += piece.count(b"\n")
                return
            self._waiting_bytes += len(piece)
        if self._thread is None:
            self._thread = Thread(target=self._run, name="access log", daemon=True)
            self._thread.start()
        self._pieces.put(piece)

    def finish(self) -> None:
        """Wait until all is written, but not long."""
        if self._thread is not None:
            self._pieces.put(None)
            self._thread.join(_LAST_S)
            self._thread = None

    def _run(self) -> None:
        while (piece := self._pieces.get()) is not None:
            try:
                self._write(piece)
            except (OSError, ValueError) as error:  # the latter of one that is closed
                _tell_lost(piece.count(b"\n"), str(error))
            with self._lock:
                self._waiting_bytes -= len(piece)
                lost, self._lost_lines = self._lost_lines, 0
            if lost:
                _tell_lost(lost, "nobody read those before them")

    def _write(self, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest:
            written = self._stream.write(rest)
            if written is None:  # of a stream that does not wait
                raise BlockingIOError(EAGAIN, os.strerror(EAGAIN))
            rest = rest[written:]
        self._stream.flush()


def _takes_long_pieces(stream: BinaryIO, *, is_shared: bool) -> bool:
    """Whether a long piece stays in one: in a regular file, and where nobody else writes, our own log least of all, and
    there is room some time.
    """
    try:
        file, log = os.fstat(stream.fileno()), os.fstat(2)
        waits = os.get_blocking(stream.fileno())
    except (OSError, ValueError):  # of what is no file of the system, or is closed
        return False
    return stat.S_ISREG(file.st_mode) or (waits and not is_shared and not os.path.samestat(file, log))


def _tell_lost(lines: int, reason: str) -> None:
    logger.error("access log: %d lines are lost: %s", lines, reason)


def _ms(seconds: float) -> float:
    """Milliseconds, to the microsecond."""
    return int(1e6 * seconds) / 1000


def _json(line: Line) -> bytes:
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _text(line: Line) -> bytes:
    rest = " ".join([f"{name}={value}" for name, value in line.items() if name not in _UNNAMED])
    return f"{line['time']} {line['level']:<8} {line['method']} {line['route']} {line['status']} {rest}\n".encode()
