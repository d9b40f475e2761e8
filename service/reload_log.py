"""What is said of a reload, also by the parent of several workers, which has loaded no engine."""

import logging
from collections.abc import Iterable

from service.errors import ReloadRefused

logger = logging.getLogger("vaeserve")


def log_served(lines: Iterable[str]) -> None:
    """Tell what is served from now on, a line for each model."""
    for line in lines:
        logger.info("reload: serving %s", line)


def logged_refusal(reason: str) -> ReloadRefused:
    """The problem that says why what was loaded serves on; the log says the same."""
    problem = ReloadRefused(f"reload: {reason}; what was loaded serves on")
    logger.error("%s", problem.detail)
    return problem
