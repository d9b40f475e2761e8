"""All that was to be sent is sent, and counts for what became of it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from socketserver import BaseRequestHandler, ThreadingTCPServer

import pytest

from benchmarks.arrivals import Arrived, in_turn, on_schedule

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
REFUSED = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\nretry-after: 1\r\n\r\n"
BARE_429 = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n"
FAILED = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"
CLOSED = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
LOST = b""
TAKES_S = 0.005  # so that requests that may be under way together are


@dataclass
class Service:
    """A server's port, the requests that it has read and not answered, and the most of them there were at a time."""

    port: int = 0
    under_way: int = 0
    most: int = 0


@contextmanager
def service(*answers: bytes) -> Iterator[Service]:
    """A server that answers what comes with one of these in turn; with nothing, it closes."""
    said, running, lock = cycle(answers), Service(), threading.Lock()

    class Connection(BaseRequestHandler):
        def handle(self) -> None:
            while self.request.recv(1000):
                with lock:
                    running.under_way += 1
                    running.most = max(running.most, running.under_way)
                time.sleep(TAKES_S)
                with lock:
                    running.under_way -= 1
                answer = next(said)
                self.request.sendall(answer)
                if not answer or b"connection: close" in answer:
                    return

    with ThreadingTCPServer(("127.0.0.1", 0), Connection) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            running.port = server.server_address[1]
            yield running
        finally:
            server.shutdown()
            thread.join()


def scheduled(*answers: bytes) -> Arrived:
    with service(*answers) as running:
        return on_schedule(running.port, [b"GET / HTTP/1.1\r\n\r\n"], connections=3, seconds=0.4, per_s=100)


def test_as_many_arrive_as_the_schedule_says() -> None:
    found = scheduled(OK)
    assert (found.sent, found.accepted, found.refused, found.failed) == (40, 40, 0, 0)
    assert 0 < found.p50_ms <= found.p99_ms
    assert 0 <= found.lag_p99_ms <= found.lag_max_ms


@pytest.mark.parametrize(
    ("answer", "refused", "failed"), [(REFUSED, 20, 0), (BARE_429, 0, 20), (FAILED, 0, 20), (LOST, 0, 20)]
)
def test_what_is_not_accepted_is_refused_or_failed(answer: bytes, refused: int, failed: int) -> None:
    found = scheduled(OK, answer)
    assert (found.sent, found.accepted, found.refused, found.failed) == (40, 20, refused, failed)


def test_a_load_of_refusals_has_no_times() -> None:
    found = scheduled(REFUSED)
    assert (found.refused, found.accepted_per_s, found.p50_ms, found.p99_ms) == (40, 0, 0, 0)


def test_connections_that_the_server_closes_are_opened_anew() -> None:
    assert scheduled(CLOSED).accepted == 40


def test_in_turn_so_many_are_under_way_at_a_time() -> None:
    with service(OK, REFUSED) as running:
        found = in_turn(running.port, [b"GET / HTTP/1.1\r\n\r\n"], connections=3, seconds=0.2, at_a_time=2)
    assert running.most == 2
    assert found.failed == 0
    assert min(found.accepted, found.refused) > 1, "another one comes for each, whatever its answer"
