"""A real `vae-serve` process for tests to talk to."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import httpx
from fastapi import FastAPI

START_S = 30


@dataclass(frozen=True)
class Server:
    """A `vae-serve` process that answers, and what it has said so far."""

    process: subprocess.Popen[str]
    url: str
    said: list[str]


@contextmanager
def serving(
    arguments: Sequence[str], *, stdout: int | IO[str] = subprocess.DEVNULL, inside: Sequence[str] = ()
) -> Iterator[Server]:
    """A real process on a free port, ended as an orchestrator ends it; `inside` is a command that becomes another."""
    command = [*inside, sys.executable, "-m", "service", "--shutdown-pause-s", "0", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True) as process:
        lines: queue.Queue[str | None] = queue.Queue()
        said: list[str] = []
        reader = threading.Thread(target=_listen, args=(process, lines, said), daemon=True)
        reader.start()
        try:
            yield Server(process, _url(lines, said), said)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            reader.join()
    assert code == 0, "".join(said)
    assert not any("Traceback" in line for line in said), "".join(said)


def _listen(process: subprocess.Popen[str], lines: "queue.Queue[str | None]", said: list[str]) -> None:
    for line in process.stderr or ():
        said.append(line)
        lines.put(line)
    lines.put(None)


def _url(lines: "queue.Queue[str | None]", said: list[str]) -> str:
    while (line := lines.get(timeout=START_S)) is not None:
        _, found, rest = line.partition("running on ")
        if found:
            return rest.split()[0]
    raise AssertionError("did not start:\n" + "".join(said))


def stopped(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """What a process that must not serve says before it ends with 2."""
    ended = subprocess.run(
        [sys.executable, "-m", "service", *arguments, "--port", "0"],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ | (environment or {}),
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr.startswith("vae-serve: ")
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    return ended.stderr.removeprefix("vae-serve: ").rstrip("\n")


def in_process(app: FastAPI, **options: Any) -> httpx.AsyncClient:
    """A client of an application in this process, which gets its 500s instead of its exceptions."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://in-process", **options)
