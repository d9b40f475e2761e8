"""What is said of a reload, in the log and to the admin who asked for it."""

import logging
from collections.abc import Iterable

from service.errors import ReloadRefused

logger = logging.getLogger("vaeserve")


def serving(lines: Iterable[str]) -> None:
    """Tell what is served from now on, a line for each model."""
    for line in lines:
        logger.info("reload: serving %s", line)


def refused(reason: str) -> ReloadRefused:
    """Tell why what was loaded serves on; the problem that says the same."""
    problem = ReloadRefused(f"reload: {reason}; what was loaded serves on")
    logger.error("%s", problem.detail)
    return problem
