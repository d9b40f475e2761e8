"""Lines of the log, for people or as JSON: how each looks, and where lines of the server go."""

import logging
import time
from functools import lru_cache
from typing import Any

import orjson

from service.settings import Settings


def config(settings: Settings) -> dict[str, Any]:
    """For `logging.config`: all lines to stderr, ours and uvicorn's from the level of the settings on, those of other
    libraries if they warn.
    """
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": Json if settings.log_format == "json" else Text}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
        "root": {"handlers": ["stderr"], "level": max(level, logging.WARNING)},
        "loggers": {"vaeserve": {"level": level}, "uvicorn": {"level": level}},
    }


def moment(seconds: float) -> str:
    """Seconds since 1970 as UTC, to the millisecond.

    Source:  RFC 3339
    """
    whole = int(seconds)
    return f"{_second(whole)}.{int(1000 * (seconds - whole)):03d}Z"


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class Text(logging.Formatter):
    """Time, level, message; what an exception says follows on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """The line of a record whose message is made."""
        return f"{moment(record.created)} {record.levelname.lower():<8} {record.message}"


class Json(logging.Formatter):
    """One JSON object on one line, whatever the message holds."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line = {
            "time": moment(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()
