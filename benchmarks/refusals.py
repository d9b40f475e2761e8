"""What refusing costs: a server in this process whose queue is full and whose engine does nothing, so that all CPU time
of the process is that of refusals.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from time import process_time

import uvloop

from benchmarks.arrivals import Arrived
from benchmarks.servers import free_port
from service.app import create_app
from service.processes.server import Server
from service.settings import Settings

_WARM_S = 1.0


def refused(
    bundle: Path, sent: Sequence[bytes], load: Callable[..., Arrived], *, elsewhere: Executor, seconds: float
) -> tuple[Arrived, float]:
    """What became of requests of a load that is made elsewhere, and CPU microseconds of each: reading it, its body
    included, refusing it, and writing that.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_refused(bundle, sent, load, elsewhere=elsewhere, seconds=seconds))


async def _refused(
    bundle: Path, sent: Sequence[bytes], load: Callable[..., Arrived], *, elsewhere: Executor, seconds: float
) -> tuple[Arrived, float]:
    settings = Settings(bundles=(bundle,), device="cpu", port=free_port(), log_level="warning")
    app, listening, loop = create_app(settings), asyncio.Event(), asyncio.get_running_loop()
    server = Server(app, settings, on_listening=listening.set)
    with app.state.deployment.lane.admit(settings.max_queue_rows):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve())
            await listening.wait()
            await loop.run_in_executor(elsewhere, partial(load, settings.port, sent, seconds=_WARM_S))
            began_s = process_time()
            found = await loop.run_in_executor(elsewhere, partial(load, settings.port, sent, seconds=seconds))
            cpu_s = process_time() - began_s
            server.should_exit = True
    return found, 1e6 * cpu_s / found.sent
