"""A line for each request, which tells what happened and nothing that a caller sent."""

import asyncio
import fcntl
import logging
import os
import re
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.observation.access_log import AccessLog
from service.observation.record import Record
from service.settings import Settings
from tests.service.linear import Bundles
from tests.service.wire import base64_png, form, pixels
from tests.serving import in_process, serving
from tests.waiting import until

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SCOPE: dict[str, Any] = {"method": "GET", "headers": [], "state": {}}


Captured = pytest.CaptureFixture[bytes]


def logging_app(bundles: Bundles, log_format: str) -> FastAPI:
    settings = {"bundles": (bundles.colour,), "access_log": True, "log_format": log_format}
    return create_app(Settings(**settings))  # type: ignore[arg-type]


def ask(app: FastAPI, *requests: tuple[str, str, dict[str, Any]]) -> None:
    async def all_of_them() -> None:
        async with in_process(app) as client:
            for method, url, parts in requests:
                await client.request(method, url, **parts)
        if app.state.access_log:
            app.state.access_log.close()

    asyncio.run(all_of_them())


def test_a_line_as_json_holds_what_became_of_the_request(bundles: Bundles, capfdbinary: Captured) -> None:
    app = logging_app(bundles, "json")
    label = app.state.deployment.models.default.label
    mine = {"x-request-id": 'a"b\\c', "traceparent": TRACEPARENT}
    ask(
        app,
        ("POST", "/reconstruct", {"files": form(pixels(3, (6, 5, 3))), "headers": mine}),
        ("GET", "/sample?n=0", {}),
        ("GET", "/nothing", {}),
    )
    answered, refused, unknown = map(orjson.loads, capfdbinary.readouterr().out.splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", answered.pop("time"))
    assert answered.pop("ms") >= answered.pop("run_ms") > 0
    assert answered.pop("queue_ms") >= 0
    assert answered == {
        "level": "info",
        "method": "POST",
        "route": "/reconstruct",
        "status": 200,
        "rows": 6,
        "model": label,
        "request_id": 'a"b\\c',
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    }
    assert set(refused) == {"time", "level", "method", "route", "status", "ms", "problem", "request_id"}
    assert (refused["route"], refused["status"], refused["problem"]) == ("/sample", 422, "invalid")
    assert (unknown["route"], unknown["status"], unknown["problem"]) == ("other", 404, "not-found")
    assert len(refused["request_id"]) == 32


def test_a_line_for_people_holds_the_same(bundles: Bundles, capfdbinary: Captured) -> None:
    app = logging_app(bundles, "text")
    label = app.state.deployment.models.default.label
    ask(app, ("GET", "/sample?seed=1&n=2", {"headers": {"x-request-id": "mine"}}))
    assert re.fullmatch(
        r"\S+Z info     GET /sample 200 ms=[\d.]+ queue_ms=[\d.]+ run_ms=[\d.]+ rows=2 "
        rf"model={re.escape(label)} request_id=mine\n",
        capfdbinary.readouterr().out.decode(),
    )


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nothing_that_a_caller_sent_is_in_a_line_but_its_ids(
    bundles: Bundles, capfdbinary: Captured, log_format: str
) -> None:
    sent = "5ecre7"
    picture = base64_png(pixels(1, (6, 5, 3))[0])
    headers = {"authorization": f"Bearer {sent}", "cookie": sent, "user-agent": sent}
    headers |= {"x-request-id": f"{sent} two words", "traceparent": f"00-{sent}"}
    ask(
        logging_app(bundles, log_format),
        ("GET", f"/sample?seed=1&key={sent}", {"headers": headers}),
        ("GET", f"/{sent}", {"headers": headers}),
        ("GET", f"/models/{sent}?{sent}", {"headers": headers}),
        ("POST", "/encode", {"json": {"images": [picture], "model": sent}, "headers": headers}),
        ("POST", "/encode", {"json": {"images": [picture]}, "headers": headers}),
    )
    said = capfdbinary.readouterr().out.decode()
    assert len(said.splitlines()) == 5
    assert sent not in said
    assert picture[:12] not in said


def test_a_failure_is_a_line_of_level_error(bundles: Bundles, capfdbinary: Captured) -> None:
    def broken(*_rows: object) -> Any:
        raise RuntimeError("broken")

    app = logging_app(bundles, "json")
    app.state.deployment.models.default.decoder.run = broken
    ask(app, ("GET", "/sample?seed=1", {}))
    line = orjson.loads(capfdbinary.readouterr().out)
    assert (line["level"], line["status"], line["problem"]) == ("error", 500, "internal")


def test_no_line_is_written_unless_asked_for(bundles: Bundles, capfdbinary: Captured) -> None:
    ask(create_app(Settings(bundles=(bundles.colour,))), ("GET", "/sample?seed=1", {}))
    assert capfdbinary.readouterr().out == b""


class Pieces(BytesIO):
    """What is written to a file of the system, piece by piece."""

    def __init__(self, file: int) -> None:
        super().__init__()
        self._file = file
        self.pieces: list[bytes] = []

    def fileno(self) -> int:
        return self._file

    def write(self, piece: Any) -> int:
        self.pieces.append(bytes(piece))
        return len(piece)


@pytest.fixture
def pipe() -> Iterator[Pieces]:
    reading, writing = os.pipe()
    yield Pieces(writing)
    os.close(reading)
    os.close(writing)


def noted(log: AccessLog, pieces: Pieces, count: int) -> list[bytes]:
    """The pieces in which so many lines of one moment are written."""
    pieces.pieces.clear()

    async def turn() -> None:
        for number in range(count):
            log.note(SCOPE, Record(f"{number}", began=0), route="/encode", status=200, seconds=0.001)
        while b"".join(pieces.pieces).count(b"\n") < count:  # noqa: ASYNC110  # it is written by itself, a moment later
            await asyncio.sleep(0.001)

    asyncio.run(turn())
    lines = b"".join(pieces.pieces).splitlines()
    assert [orjson.loads(line)["request_id"] for line in lines] == [str(number) for number in range(count)]
    return pieces.pieces


def assert_small(pieces: Sequence[bytes]) -> None:
    assert len(pieces) > 1
    assert all(len(piece) <= 4096 and piece.endswith(b"}\n") for piece in pieces)


def test_lines_of_one_moment_leave_together(pipe: Pieces) -> None:
    log = AccessLog("json", stream=pipe)
    assert len(noted(log, pipe, 3)) == 1
    assert len(noted(log, pipe, 100)) == 1
    assert max(map(len, noted(log, pipe, 1_000))) in range(60_000, 65_537)


def test_lines_of_several_workers_leave_in_pieces_that_a_pipe_takes_whole(pipe: Pieces) -> None:
    assert_small(noted(AccessLog("json", stream=pipe, is_shared=True), pipe, 100))


def test_where_a_pipe_does_not_wait_a_piece_is_taken_whole_or_not_at_all(pipe: Pieces) -> None:
    os.set_blocking(pipe.fileno(), False)
    assert_small(noted(AccessLog("json", stream=pipe), pipe, 100))


def test_lines_that_go_where_our_own_log_goes_leave_in_pieces_that_a_pipe_takes_whole(pipe: Pieces) -> None:
    kept = os.dup(2)
    os.dup2(pipe.fileno(), 2)
    try:
        log = AccessLog("json", stream=pipe)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    assert_small(noted(log, pipe, 100))


def test_a_stream_that_is_no_file_of_the_system_takes_lines(pipe: Pieces) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pipe, "fileno", BytesIO().fileno)
        log = AccessLog("json", stream=pipe)
    assert_small(noted(log, pipe, 100))


def test_a_file_takes_long_pieces_of_several_workers(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        pieces = Pieces(file.fileno())
        assert len(noted(AccessLog("json", stream=pieces, is_shared=True), pieces, 100)) == 1


def test_lines_that_cannot_be_written_are_counted_in_the_log_and_stop_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with caplog.at_level(logging.ERROR), os.fdopen(writing, "wb", buffering=0) as stream:
        log = AccessLog("text", stream=stream)

        async def turn() -> None:
            log.note(SCOPE, Record("1", began=0), route="/encode", status=200, seconds=0.001)
            log.note(SCOPE, Record("2", began=0), route="/encode", status=200, seconds=0.001)
            while not caplog.records:  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.001)

        asyncio.run(turn())
    assert [record.message for record in caplog.records] == ["access log: 2 lines are lost: [Errno 32] Broken pipe"]


def test_a_reader_that_does_not_read_keeps_nobody_waiting_and_costs_lines(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.observation.access_log._MOST_WAITING_BYTES", 200_000)
    reading, writing = os.pipe()
    caplog.set_level(logging.ERROR)
    with os.fdopen(writing, "wb", buffering=0) as stream, os.fdopen(reading, "rb") as reader:
        log = AccessLog("json", stream=stream)

        async def turn() -> None:
            for number in range(3_000):  # more bytes than a pipe and what may wait have room for
                log.note(SCOPE, Record(f"{number}", began=0), route="/encode", status=200, seconds=0.001)

        asyncio.run(turn())  # comes to its end
        log.close()  # and so does this
        kept = [orjson.loads(reader.readline())["request_id"] for _ in range(600)]
        assert kept == [str(number) for number in range(600)]
        until(lambda: caplog.records)
        said = caplog.records[0].message
    assert re.fullmatch(r"access log: \d+ lines are lost: nobody read those before them", said)


def test_a_process_whose_lines_nobody_reads_answers_and_ends(bundles: Bundles) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w") as stream:
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        with serving([*bundles.arguments, "--access-log"], stdout=stream) as server, httpx.Client() as client:
            for _ in range(100):
                assert client.get(f"{server.url}/health/live", timeout=20).status_code == 200


def test_a_stream_that_does_not_wait_costs_lines_that_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    caplog.set_level(logging.ERROR)
    with os.fdopen(writing, "wb", buffering=0) as stream, os.fdopen(reading, "rb"):
        log = AccessLog("json", stream=stream)

        async def turn() -> None:
            for number in range(1_000):
                log.note(SCOPE, Record(f"{number}", began=0), route="/encode", status=200, seconds=0.001)

        asyncio.run(turn())
        log.close()
    assert caplog.messages
    assert all(
        message.endswith("lines are lost: [Errno 11] Resource temporarily unavailable") for message in caplog.messages
    )
