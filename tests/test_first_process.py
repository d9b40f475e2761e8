"""`vae-serve` as the first process of a container, which the kernel spares every signal that it has no handler for."""

import array
import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes import begun
from tests.waiting import until

# A process whose decoder, once it serves, does not come to an end.
STUCK = """
import threading
from service import lane
from service.__main__ import app
from service.processes.server import Server

lane.loop_budget_us = lambda _cores: -1.0
startup = Server.startup

async def spoilt(self, sockets=None):
    self._app.state.deployment.models.default.decoder.run = lambda *_rows: threading.Event().wait()
    await startup(self, sockets)

Server.startup = spoilt
app()
"""


@pytest.fixture(scope="module", params=[True, False], ids=["first process", "any other"])
def inside(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """A command that makes another the first process, where this machine lets a test do that."""
    if not request.param:
        return ()
    as_root = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    command = ("unshare", *as_root, "--pid", "--fork", "--kill-child")
    if (tried := subprocess.run([*command, "true"], capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"no process can be a first one here: {tried.stderr.strip()}")
    return command


@contextmanager
def running(inside: Sequence[str], *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", Callable[..., None]]]:
    """A service, and what sends it a signal: of a first process, `unshare` is the parent that waits for it."""
    command = [*inside, sys.executable, *arguments, "--port", "0", "--shutdown-pause-s", "0"]
    with begun(command, stderr=subprocess.PIPE) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if inside:
            until(children.read_text)
        number = int(children.read_text()) if inside else process.pid

        def send(number_of_signal: signal.Signals) -> None:
            with suppress(ProcessLookupError):  # it has ended, which whoever waits for it is about to know
                os.kill(number, number_of_signal)

        yield process, send


def is_full(pipe: Any) -> bool:
    """Whether there is no room for one more line."""
    unread = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, unread)
    return unread[0] > 4096 - 200


def stuck_at_a_request(process: "subprocess.Popen[str]") -> None:
    assert process.stderr
    url = next(line for line in process.stderr if "running on" in line).partition("running on ")[2].split()[0]
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{url}/sample", timeout=httpx.Timeout(20, read=0.5))


def test_sigterm_ends_a_process_that_still_loads(inside: tuple[str, ...]) -> None:
    with running(inside, "-m", "service") as (process, send):
        until(lambda: send(signal.SIGTERM) or process.poll() is not None)
    assert process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)


def test_a_process_that_is_stuck_is_gone_in_time_and_says_where_it_was(inside: tuple[str, ...]) -> None:
    with running(inside, "-c", STUCK, "--shutdown-timeout-s", "2") as (process, send):
        stuck_at_a_request(process)
        send(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "Timeout (0:00:02)!" in said
    assert 'File "<string>"' in said


def test_a_second_ctrl_c_ends_a_process_that_is_stuck(inside: tuple[str, ...]) -> None:
    with running(inside, "-c", STUCK, "--shutdown-timeout-s", "600") as (process, send):
        stuck_at_a_request(process)
        until(lambda: send(signal.SIGINT) or process.poll() is not None)
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_process_whose_lines_nobody_reads_is_gone_in_time_too(inside: tuple[str, ...], workers: str) -> None:
    """Its event loop waits for somebody to take them; of several workers that of their parent, and maybe theirs."""
    with running(inside, "-m", "service", "--shutdown-timeout-s", "2", "--workers", workers) as (process, send):
        assert process.stderr
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        next(line for line in process.stderr if "running on" in line)
        until(lambda: send(signal.SIGHUP) or is_full(process.stderr))  # it tells of each reload
        send(signal.SIGHUP)
        time.sleep(1)  # in which it comes to a line that has no room
        send(signal.SIGTERM)
        assert process.wait(20) == 1
