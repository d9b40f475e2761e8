"""What it costs to see a request: CPU of request id, metrics and access log, beside an answer that nobody sees.

Run as `python -m benchmarks.observed`. In process, on uvloop: an ASGI application that answers at once, with the
messages of /encode, with and without `Observed` around it. Lines of the log go into a pipe that somebody reads. So many
requests at a time, each a task of its own, come in one turn of the event loop.
"""

import asyncio
import logging
import os
import subprocess
from argparse import ArgumentParser
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from statistics import median
from time import perf_counter, process_time
from typing import BinaryIO

import numpy as np
import uvloop
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.logging import AccessFormatter

from benchmarks import results
from service.batcher import Done
from service.observation.access_log import AccessLog
from service.observation.metrics import Metrics
from service.observation.observed import Observed
from service.observation.timing import Timing

AT_A_TIME = (1, 16)

_ROUTE = "/encode"
_HEADERS = [
    (b"host", b"127.0.0.1:8000"),
    (b"accept", b"*/*"),
    (b"user-agent", b"benchmark"),
    (b"content-type", b"image/png"),
    (b"content-length", b"500"),
]
_MODEL = f"fashion@{64 * '0'}"
_DONE = Done((np.zeros((1, 16), np.float32),), queued_at=0.1, started_at=0.2, ended_at=0.3, run_s=0.1, batch_rows=1)


@dataclass(frozen=True)
class Seen:
    """What one request costs, median over rounds.

    Units:  microseconds of CPU, more_us than without what is measured
    """

    what: str
    at_a_time: int
    cpu_us: float
    more_us: float


def main() -> None:
    """Measure, print a table, keep the figures as JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=5_000, help="of each kind in a round (default 5000)")
    parser.add_argument("--rounds", type=int, default=15, help="all kinds in turn (default 15)")
    arguments = parser.parse_args()
    reading, writing = os.pipe()
    with subprocess.Popen(["cat"], stdin=reading, stdout=subprocess.DEVNULL), os.fdopen(writing, "wb") as pipe:
        found = uvloop.run(_measure(pipe, requests=arguments.requests, rounds=arguments.rounds))
    rows = [(seen.what, str(seen.at_a_time), f"{seen.cpu_us:.1f}", f"{seen.more_us:+.1f}") for seen in found]
    print(f"CPU of a request, on {results.on_machine()}\n")
    print(results.table(("what", "at a time", "µs", "more"), rows))
    print("\n" + results.keep("observed", {"seen": [asdict(seen) for seen in found]}))


async def _measure(pipe: BinaryIO, *, requests: int, rounds: int) -> list[Seen]:
    logs = {
        "and the access log as text": AccessLog("text", stream=pipe),
        "and the access log as JSON": AccessLog("json", stream=pipe),
        "and that as JSON, of one of several workers": AccessLog("json", stream=pipe, is_shared=True),
    }
    kinds: dict[str, ASGIApp] = {
        "nothing": _unseen,
        "request id and metrics": _observed(None),
        **{what: _observed(log) for what, log in logs.items()},
        "uvicorn's access log alone": _logged_by_uvicorn(pipe),
    }
    taken: dict[tuple[str, int], list[float]] = {(what, n): [] for n in AT_A_TIME for what in kinds}
    for _ in range(rounds):
        for what, n in taken:
            taken[what, n].append(await _cpu_us(kinds[what], logs.get(what), requests=requests, at_a_time=n))
    found = []
    for (what, n), all_us in taken.items():
        more_us = median(us - nothing for us, nothing in zip(all_us, taken["nothing", n], strict=True))
        found.append(Seen(what, n, cpu_us=round(median(all_us), 2), more_us=round(more_us, 2)))
    return found


async def _cpu_us(app: ASGIApp, log: AccessLog | None, *, requests: int, at_a_time: int) -> float:
    began = process_time()
    for _ in range(requests // at_a_time):
        await asyncio.gather(*[app(_scope(), _receive, _send) for _ in range(at_a_time)])
    if log:
        log.close()  # what is still to be written is paid for too
    return 1e6 * (process_time() - began) / requests


def _scope() -> Scope:
    return {
        "type": "http",
        "method": "POST",
        "path": _ROUTE,
        "query_string": b"",
        "headers": _HEADERS,
        "http_version": "1.1",
        "client": ("127.0.0.1", 50000),
        "state": {},
    }


async def _unseen(scope: Scope, _receive: Receive, send: Send) -> None:
    now = perf_counter()
    timing = Timing(began=now, decoded_at=now, runs=(_DONE,), encoding_at=now)  # for Server-Timing, seen or not
    if noted := scope["state"].get("record"):
        noted.timing, noted.model = timing, _MODEL
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b"{}"})


def _observed(access_log: AccessLog | None) -> ASGIApp:
    return Observed(
        _unseen, routes=(Route(_ROUTE, _unseen),), metrics=Metrics((_ROUTE,)), access_log=access_log, traces=None
    )


def _logged_by_uvicorn(pipe: BinaryIO) -> ASGIApp:
    """As uvicorn notes an answer, through `logging`."""
    handler = logging.StreamHandler(TextIOWrapper(pipe))
    handler.setFormatter(AccessFormatter('%(client_addr)s - "%(request_line)s" %(status_code)s', use_colors=False))
    logger = logging.getLogger("benchmarks.observed")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        host, port = scope["client"]
        await _unseen(scope, receive, send)
        logger.info('%s - "%s %s HTTP/%s" %d', f"{host}:{port}", scope["method"], scope["path"], "1.1", 200)

    return app


async def _receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(_message: Message) -> None:
    pass


if __name__ == "__main__":
    main()
