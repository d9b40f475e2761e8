"""SIGTERM, SIGHUP and kill -9 under load, a few of each: nothing that was accepted is lost, and every answer is that of
the version whose digest it carries. `make soak` sends dozens.
"""

import asyncio
import socket
import threading
from pathlib import Path

import pytest

from benchmarks import signals
from benchmarks.callers import Callers, Seen
from benchmarks.connections import Answer
from benchmarks.signals import Signalled
from benchmarks.subjects import Subject
from benchmarks.versions import Versions, versions


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little load before a signal, and no bar on how much is answered after it."""
    monkeypatch.setattr(signals, "LOAD_S", 0.3)
    monkeypatch.setattr(signals, "FULL", 0.0)


def assert_holds(found: Signalled, *, times: int) -> None:
    claims = [claim for claim in signals.claimed(found) if "seconds" not in claim.what]
    assert [claim for claim in claims if not claim.is_met] == []
    assert len(found.seconds) == times
    assert found.seen.right > 0


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_loses_nothing_that_was_accepted(subject: Subject, both: Versions, workers: int) -> None:
    found = signals.end(subject.bundle, both, workers=workers, times=1)
    assert found.codes == (0,)
    assert_holds(found, times=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_loses_nothing_and_no_version_answers_for_the_other(
    bundles: tuple[Path, Path], both: Versions, workers: int
) -> None:
    assert_holds(signals.reload(bundles, both, workers=workers, times=3), times=3)


def test_a_killed_worker_loses_its_own_requests_alone(subject: Subject, both: Versions) -> None:
    assert_holds(signals.kill(subject.bundle, both, times=2), times=2)


# What finds nothing must be able to find something


def seen_of(both: Versions, answer: bytes) -> Seen:
    """What a caller sees of a server that reads requests and answers them so, each on a connection of its own."""

    async def call(port: int) -> Seen:
        callers = Callers(port, both, Seen(), count=1)
        async with callers.calling(), asyncio.timeout(20):
            while callers.seen == Seen():  # noqa: ASYNC110  what the caller sees ends it
                await asyncio.sleep(0.01)
        return callers.seen

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(10_000)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            return asyncio.run(call(listener.getsockname()[1]))
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def encoded(both: Versions, *, label: str, digest: str, place: int = 0) -> Answer:
    """An answer to the first request, by a version that says who it is."""
    mu = list(both.mu.values())[place][0].tolist()
    body = f'{{"digest":"{digest}","mu":[{mu}],"logvar":[{mu}]}}'.encode()
    return Answer(200, f"HTTP/1.1 200 OK\r\nx-model: {label}\r\n".encode(), body)


def test_an_answer_is_right_if_the_version_that_it_names_made_it(both: Versions) -> None:
    first, second = both.mu
    assert both.is_right(0, encoded(both, label=f"model@{first}", digest=first))
    assert not both.is_right(1, encoded(both, label=f"model@{first}", digest=first)), "of another picture"
    assert not both.is_right(0, encoded(both, label=f"model@{second}", digest=second)), "of another version"
    assert not both.is_right(0, encoded(both, label=f"model@{second}", digest=first)), "of two names"
    assert not both.is_right(0, encoded(both, label="model@0", digest="0")), "of nobody"


def test_versions_that_answer_alike_are_no_test(subject: Subject, tmp_path: Path) -> None:
    same = tmp_path / "same"
    same.mkdir()
    for name in ("manifest.json", "encoder.onnx"):
        content = (subject.bundle / name).read_bytes()
        (same / name).write_bytes(content.replace(subject.digest.encode(), b"0" * 64))
    with pytest.raises(ValueError, match=r"mu of two versions: got 0 apart, expected at least 0\.01"):
        versions((subject.bundle, same), subject.images)


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (b"", "lost"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", "lost"),
        (b'HTTP/1.1 200 OK\r\nX-Model: model@0\r\nContent-Length: 25\r\n\r\n{"digest":"0","mu":[0.5]}', "wrong"),
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "statuses"),
    ],
)
def test_callers_see_what_is_lost_and_what_is_wrong(both: Versions, answer: bytes, seen: str) -> None:
    found = seen_of(both, answer)
    assert getattr(found, seen)
    assert found.right == 0
