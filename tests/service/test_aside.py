"""Work that nobody waits for at the end: its result, its failure, and a process that leaves it."""

import asyncio
import signal
import subprocess
import sys
import threading

import pytest

from service.aside import aside
from tests.processes import begun

# A process that never comes to the end of a reload.
LOADING = """
import sys, threading
from service import reload
from service.__main__ import app

def reloaded(*_):
    print("begun to load", file=sys.stderr, flush=True)
    threading.Event().wait()

reload.reloaded = reloaded
app()
"""


def test_what_is_done_aside_gives_its_result_or_its_failure() -> None:
    async def scenario() -> None:
        assert await aside(lambda *numbers: (sum(numbers), threading.current_thread().daemon), 1, 2) == (3, True)
        with pytest.raises(ZeroDivisionError):
            await aside(lambda: 1 / 0)

    asyncio.run(scenario())


def test_who_waits_may_be_cancelled_while_it_goes_on() -> None:
    gate, ended = threading.Event(), threading.Event()

    def work() -> None:
        gate.wait(20)
        ended.set()

    async def scenario() -> None:
        task = asyncio.create_task(aside(work))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    gate.set()
    assert ended.wait(20)


def test_a_process_that_is_told_to_end_waits_for_no_reload() -> None:
    arguments = ["--port", "0", "--shutdown-pause-s", "0", "--shutdown-timeout-s", "600"]
    with begun([sys.executable, "-c", LOADING, *arguments], stderr=subprocess.PIPE) as process:
        assert process.stderr
        for sent, awaited in ((signal.SIGHUP, "running on"), (signal.SIGTERM, "begun to load")):
            next(line for line in process.stderr if awaited in line)
            process.send_signal(sent)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in said
