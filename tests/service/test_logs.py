"""Lines of the log, as people and as machines read them."""

import logging
import logging.config
import os
import re
import time
from collections.abc import Iterator
from io import StringIO

import orjson
import pytest

from service.observation import logs
from service.settings import Settings

NOW = 1_795_290_000.0625


def formatted(form: logging.Formatter, message: str, *arguments: object, error: Exception | None = None) -> str:
    record = logging.LogRecord(
        "vaeserve", logging.WARNING, "", 0, message, arguments, (type(error), error, None) if error else None
    )
    record.created = NOW
    return form.format(record)


def test_a_moment_is_utc_to_the_millisecond() -> None:
    assert logs.moment(NOW) == "2026-11-21T19:40:00.062Z"
    assert logs.moment(0.9999) == "1970-01-01T00:00:00.999Z"
    for seconds in (1e9, 1_700_000_000.5, 2e9 + 0.25):
        expected = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        assert logs.moment(seconds).startswith(expected)


def test_a_line_for_people_says_when_how_bad_and_what() -> None:
    assert formatted(logs.Text(), "got %d", 3) == "2026-11-21T19:40:00.062Z warning  got 3"


def test_a_line_for_people_is_followed_by_what_the_exception_says() -> None:
    lines = formatted(logs.Text(), "failed", error=ValueError("no")).splitlines()
    assert lines == ["2026-11-21T19:40:00.062Z warning  failed", "ValueError: no"]


def test_a_line_as_json_is_one_object_whatever_it_holds() -> None:
    line = formatted(logs.Json(), 'two\nlines and a "quote" %s', "é", error=ValueError("no"))
    assert "\n" not in line
    assert orjson.loads(line) == {
        "time": "2026-11-21T19:40:00.062Z",
        "level": "warning",
        "logger": "vaeserve",
        "pid": os.getpid(),
        "message": 'two\nlines and a "quote" é',
        "exception": "ValueError: no",
    }


@pytest.fixture
def kept() -> Iterator[None]:
    """The loggers as they were."""
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in ("vaeserve", "uvicorn", "uvicorn.error"))]
    before = [(logger, logger.level, list(logger.handlers), logger.propagate) for logger in loggers]
    for logger in loggers[1:]:  # as they are in a process in which no other server was configured
        logger.setLevel(logging.NOTSET)
        logger.handlers[:] = []
        logger.propagate = True
    yield
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate


@pytest.mark.parametrize("form", ["text", "json"])
def test_lines_of_ours_of_the_server_and_of_libraries_that_warn_have_one_form(
    kept: None, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    said = StringIO()
    monkeypatch.setattr("sys.stderr", said)
    logging.config.dictConfig(logs.config(Settings(log_format=form, log_level="info")))  # type: ignore[arg-type]
    for name in ("vaeserve", "uvicorn.error", "other"):
        logging.getLogger(name).debug("debug of %s", name)
        logging.getLogger(name).info("info of %s", name)
        logging.getLogger(name).warning("warning of %s", name)
    lines = said.getvalue().splitlines()
    if form == "json":
        messages = [orjson.loads(line)["message"] for line in lines]
    else:
        messages = [re.fullmatch(r"\S+Z (?:info|warning) +(.*)", line)[1] for line in lines]  # type: ignore[index]
    assert messages == [
        "info of vaeserve", "warning of vaeserve", "info of uvicorn.error", "warning of uvicorn.error",
        "warning of other",
    ]  # fmt: skip
