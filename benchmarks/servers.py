"""A server as a child process: started, asked, measured from /proc, stopped. Linux only."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import cycle, islice
from pathlib import Path
from threading import local

ROOT = Path(__file__).resolve().parent.parent
SHIPPED_BUNDLE = ROOT / "service" / "bundles" / "fashion"
HOST = "127.0.0.1"
READY = "/health/ready"

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Server:
    """A server that answers on a port of this machine."""

    pid: int
    port: int
    ready_s: float
    """Seconds from the start of its process to the first 200 on /health/ready."""

    def url(self, path: str) -> str:
        """An address of this server."""
        return f"http://{HOST}:{self.port}{path}"

    def cpu_s(self) -> float:
        """CPU seconds that it and all processes below it have used."""
        return sum(sum(map(int, _stat(pid)[11:15])) for pid in _tree(self.pid)) / _TICKS_PER_S

    def resident_mb(self) -> float:
        """Resident memory of it and all processes below it, in 10⁶ bytes."""
        return sum(int(_stat(pid)[21]) for pid in _tree(self.pid)) * _PAGE_BYTES / 1e6

    def post_all(self, bodies: Sequence[bytes], *, path: str, content_type: str, connections: int) -> list[bytes]:
        """The answers to all bodies, in their order, sent over so many connections at once.

        Raises:  RuntimeError at the first answer that is not a 200
        """
        kept = local()

        def post(body: bytes) -> bytes:
            if not hasattr(kept, "connection"):
                kept.connection = HTTPConnection(HOST, self.port, timeout=30)
            kept.connection.request("POST", path, body, {"Content-Type": content_type})
            answer = kept.connection.getresponse()
            content: bytes = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{path}: got {answer.status} {content[:200]!r}, expected 200")
            return content

        with ThreadPoolExecutor(connections) as pool:
            return list(pool.map(post, bodies))


@contextmanager
def running(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, ready_within_s: float = 60
) -> Iterator[Server]:
    """A server that is ready, stopped in the end; `{port}` in its command becomes a free port.

    Raises:  RuntimeError if it ends, or is not ready in time
    """
    port = _free_port()
    words = [word.format(port=port) for word in command]
    began = time.perf_counter()
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env=os.environ | dict(environment or {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not _is_ready(port):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(words)}: ended with {process.returncode}; run it by hand to see why")
            if time.perf_counter() - began > ready_within_s:
                raise RuntimeError(f"{' '.join(words)}: not ready within {ready_within_s:g} s")
            time.sleep(0.002)
        yield Server(process.pid, port, time.perf_counter() - began)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def serve_command(bundle: Path) -> list[str]:
    """`vae-serve` of this environment, as an operator starts it."""
    return [script("vae-serve"), str(bundle), "--port", "{port}", "--device", "cpu"]


def plain_command() -> list[str]:
    """uvicorn of this environment with `benchmarks/plain.py`, which reads BUNDLE from the environment."""
    return [script("uvicorn"), "benchmarks.plain:app", "--port", "{port}", "--no-access-log"]


def script(name: str) -> str:
    """A console script of this environment."""
    return str(Path(sys.executable).with_name(name))


def repeated(bodies: Sequence[bytes], n: int) -> list[bytes]:
    """The first n of these bodies, sent round and round."""
    return list(islice(cycle(bodies), n))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def _is_ready(port: int) -> bool:
    connection = HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", READY)
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


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on (proc(5)), after the name, which may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
