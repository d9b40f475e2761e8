"""A server as a child process: started, asked, measured from /proc, stopped. Linux only."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryFile
from threading import local

ROOT = Path(__file__).resolve().parent.parent
SHIPPED_BUNDLE = ROOT / "service" / "bundles" / "fashion"
HOST = "127.0.0.1"
READY = "/health/ready"

# A server rests when its processes used at most this share of a core over so many seconds.
_RESTING_SHARE, _REST_S = 0.25, 0.5
_SETTLES_WITHIN_S = 30.0

_ANSWERED_WITHIN_S = 600.0  # a request of many rows or of a large model

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Request:
    """A POST of a body; a GET where there is none."""

    path: str
    content_type: str = ""
    body: bytes = b""


@dataclass(frozen=True)
class Server:
    """A server that answers on a port of this machine."""

    pid: int
    port: int
    ready_s: float
    """Seconds from the start of its process to the first 200 on its path for that."""

    def url(self, path: str) -> str:
        """An address of this server."""
        return f"http://{HOST}:{self.port}{path}"

    def cpu_s(self) -> float:
        """CPU seconds that it and all processes below it have used."""
        return sum(sum(map(int, _stat(pid)[11:15])) for pid in _tree(self.pid)) / TICKS_PER_S

    def settle(self) -> None:
        """Wait until it rests: ready is a server of several processes as soon as the first of them is.

        Raises:  RuntimeError if it does not come to rest
        """
        ends = time.perf_counter() + _SETTLES_WITHIN_S
        used_s = self.cpu_s()
        while time.perf_counter() < ends:
            time.sleep(_REST_S)
            before_s, used_s = used_s, self.cpu_s()
            if used_s - before_s <= _RESTING_SHARE * _REST_S:
                return
        raise RuntimeError(f"{self.url('/')}: still busy {_SETTLES_WITHIN_S:g} s after it was ready, expected rest")

    def resident_mb(self) -> float:
        """Resident memory of it and all processes below it, in 10⁶ bytes; what processes share is counted once."""
        return sum(_proportional_kib(pid) for pid in _tree(self.pid)) * 1024 / 1e6

    def threads(self) -> int:
        """Threads of it and all processes below it."""
        return self._entries("task")

    def descriptors(self) -> int:
        """File descriptors that it and all processes below it have open."""
        return self._entries("fd")

    def workers(self) -> list[int]:
        """Processes that it started to serve, the oldest first; none where it serves by itself."""
        return [pid for pid in _tree(self.pid)[1:] if b"spawn_main" in _command(pid)]

    def answer(self, request: Request) -> bytes:
        """The answer to a request on a connection of its own.

        Raises:  RuntimeError if it is not a 200
        """
        with closing(HTTPConnection(HOST, self.port, timeout=_ANSWERED_WITHIN_S)) as connection:
            return _ask(connection, request)

    def answers(self, requests: Sequence[Request], *, connections: int) -> list[bytes]:
        """The answers to all requests, in their order, sent over so many connections at once.

        Raises:  RuntimeError at the first answer that is not a 200
        """
        kept = local()

        def ask(request: Request) -> bytes:
            if not hasattr(kept, "connection"):
                kept.connection = HTTPConnection(HOST, self.port, timeout=_ANSWERED_WITHIN_S)
            return _ask(kept.connection, request)

        with ThreadPoolExecutor(connections) as pool:
            return list(pool.map(ask, requests))

    def _entries(self, folder: str) -> int:
        return sum(len(list(Path(f"/proc/{pid}/{folder}").iterdir())) for pid in _tree(self.pid))


@contextmanager
def running(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    ready: str = READY,
    ready_within_s: float = 60,
) -> Iterator[Server]:
    """A server that is ready, stopped in the end; `{port}` in its command becomes a free port, `ready` is the path
    that it answers with 200 from then on.

    Raises:  RuntimeError if it ends, or is not ready in time
    """
    port = free_port()
    words = [word.format(port=port) for word in command]
    with TemporaryFile() as said:
        began = time.perf_counter()
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=os.environ | dict(environment or {}),
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
        try:
            while not _is_ready(port, ready):
                if process.poll() is not None:
                    said.seek(0)
                    last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
                    raise RuntimeError(f"{' '.join(words)}: ended with {process.returncode}: {last}")
                if time.perf_counter() - began > ready_within_s:
                    raise RuntimeError(f"{' '.join(words)}: not ready within {ready_within_s:g} s")
                time.sleep(0.002)
            yield Server(process.pid, port, time.perf_counter() - began)
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # whatever is left of its processes
            process.wait()


def serve_command(bundle: Path, *options: str, python: str = sys.executable) -> list[str]:
    """`vae-serve` of an environment, as an operator starts it."""
    return [script("vae-serve", python), str(bundle), "--port", "{port}", "--device", "cpu", *options]


def script(name: str, python: str = sys.executable) -> str:
    """A console script of an environment, by default of this one."""
    return str(Path(python).with_name(name))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def repeated(requests: Sequence[Request], n: int) -> list[Request]:
    """The first n of these requests, sent round and round."""
    return list(islice(cycle(requests), n))


def _ask(connection: HTTPConnection, request: Request) -> bytes:
    method, headers = ("POST", {"Content-Type": request.content_type}) if request.body else ("GET", {})
    connection.request(method, request.path, request.body or None, headers)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{request.path}: got {answer.status} {content[:200]!r}, expected 200")
    return content


def _is_ready(port: int, path: str) -> bool:
    connection = HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _tree(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):  # a thread that has just ended
                found.extend(map(int, children.read_text().split()))
    return found


def _command(pid: int) -> bytes:
    """What a process was started with, nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on (proc(5)), after the name, which may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _proportional_kib(pid: int) -> int:
    """A process's share of resident memory, shared pages divided among those that have them (proc_pid_smaps(5))."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
