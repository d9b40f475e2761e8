"""Processes that no test leaves behind, however it ends."""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def begun(command: Sequence[str], **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """A process in a session of its own, as a terminal has one, whose whole group is killed in the end."""
    with subprocess.Popen(command, text=True, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
