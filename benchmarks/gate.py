"""What a key costs a request: CPU microseconds of the check and of a refusal, in process.

Run as `python -m benchmarks.gate`. The rest of the service is left out: what is behind the gate answers at once.
"""

import asyncio
import secrets
import tempfile
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from time import process_time
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks import results
from service.access.gate import Gate
from service.access.keys import Keys
from service.observation.record import Record

REPEATS = 15
REQUESTS = 20_000
COUNTS = (1, 10, 100)
# What a client sends beside its key.
HEADERS = [
    (b"host", b"127.0.0.1:8000"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
    (b"user-agent", b"python-httpx/0.28.1"),
]


async def behind(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """What a request meets when it was let in."""


async def nowhere(_message: object) -> None:
    """Where answers go."""


def main() -> None:
    """Measure, print a table, keep the figures as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        measured = {label: us for count in COUNTS for label, us in _measured(Path(folder) / "keys.toml", count).items()}
    print(f"CPU of a request at the gate; {results.on_machine()}\n")
    print(results.table(("what", "µs"), [(label, f"{us:.2f}") for label, us in measured.items()]))
    print("\n" + results.keep("gate", {"us": measured}))


def _measured(path: Path, count: int) -> dict[str, float]:
    """Microseconds of what can happen at the gate where it has so many keys."""
    tokens = [f"vae_{secrets.token_urlsafe(32)}" for _ in range(count + 1)]
    rate = ", rows_per_s = 1e12"
    path.touch(mode=0o600)
    path.write_text(
        "".join(
            f'k{index} = {{ sha256 = "{sha256(token.encode()).hexdigest()}", scopes = ["read"]{rate * (not index)} }}\n'
            for index, token in enumerate(tokens[:count])
        )
    )
    gate = Gate(behind, keys=Keys(path, workers=1), metrics_open=False)
    cases: dict[str, tuple[ASGIApp, str]] = {
        "nothing": (behind, tokens[0]),
        "known, with a rate": (gate, tokens[0]),
        "known": (gate, tokens[count - 1]),
        "unknown, answered 401": (gate, tokens[count]),
    }
    if count == 1:
        del cases["known"]
    us = _side_by_side({label: partial(_requests, app, token) for label, (app, token) in cases.items()})
    floor = us.pop("nothing")
    return {f"{label}, {count} key{'s' * (count > 1)}": found - floor for label, found in us.items()}


def _side_by_side(cases: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """CPU microseconds of a request of each case: the best of several rounds, in which all take turns."""
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(REPEATS):
        for label, requests in cases.items():
            best[label] = min(best[label], asyncio.run(requests()))
    return {label: 1e6 * seconds / REQUESTS for label, seconds in best.items()}


async def _requests(app: ASGIApp, token: str) -> float:
    """CPU seconds of many requests that show a key, one after the other."""
    state: dict[str, object] = {"record": Record("benchmark", began=0.0)}
    headers = [*HEADERS, (b"authorization", b"Bearer " + token.encode())]
    scope: Scope = {"type": "http", "method": "GET", "path": "/sample", "headers": headers, "state": state}
    receive: Any = None  # nobody reads a body
    began = process_time()
    for _ in range(REQUESTS):
        await app(scope, receive, nowhere)
    return process_time() - began


if __name__ == "__main__":
    main()
