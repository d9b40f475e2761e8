"""The cores that all graphs of a process share: whose turn it is, what runs, and what follows if a run fails."""

import asyncio
import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import ceil
from time import perf_counter

from service.batcher import Batch, Queue, Rows
from service.budget import loop_budget_us
from service.errors import OutOfMemory, QueueFull
from service.machine import compute_behind
from service.observation.metrics import Metrics
from service.stop import Stop

logger = logging.getLogger("vaeserve")

# A run that takes this long is ended when nobody waits for it any more; a shorter one is not worth the asking.
_STOPPABLE_US = 100_000.0

# Beside runs that take this long, another one is begun ahead. Shorter ones are over before their thread would miss it.
_LONG_US = 2_000.0

# A run that takes so many times what it is expected to take will not end.
_WEDGED_TIMES = 20


class Lane:
    """The cores that all graphs of a process share, and the account of engine rows that were admitted to them.

    A run begins when as many cores are free as it takes: all of them for the few rows of a large graph that are soonest
    answered so; one where a graph is so small that its threads would wait for each other, or where each core has rows
    of its own to do, so that several runs go on side by side. Then one more goes on than there are cores: a thread
    whose run has ended waits for the interpreter before it can begin another, and its core has work meanwhile.
    Where several processes share `machine_cores`, each has its part of them, and for as many rows as a run takes also
    those that the others leave idle.
    Everything here happens on the event loop, except the run of a graph, and that too where it is short.
    """

    def __init__(self, *, max_queue_rows: int, metrics: Metrics, cores: int = 1, machine_cores: int = 1) -> None:
        self.machine_cores = max(machine_cores, cores)
        self._executor = ThreadPoolExecutor(
            max_workers=self.machine_cores + 1, thread_name_prefix="engine", initializer=compute_behind
        )
        self._waiting: deque[Queue] = deque()
        self._again: deque[tuple[Queue, Batch]] = deque()
        self._running: dict[Batch, float] = {}
        self.cores = self._free_cores = cores
        self._loop_budget_us = loop_budget_us(cores)
        self._woken = False
        self._max_queue_rows = max_queue_rows
        self._metrics = metrics
        self._metrics.queue_limit_rows.set(max_queue_rows)
        self._admitted_rows = 0
        self._rows_per_s = 0.0

    def admit(self, rows: int) -> "Admission":
        """Room for all engine rows that a request will run, held until it has run them.

        Raises:  QueueFull with a Retry-After from the measured rate; a request alone is always admitted
        """
        self.require_room(rows)
        return Admission(self, rows)

    def hold(self, rows: int) -> None:
        """Count rows that were admitted, or with a minus those that have run."""
        self._admitted_rows += rows
        self._metrics.queue_rows.add(rows)

    def require_room(self, rows: int) -> None:
        """Refuse a request that could not be admitted now, before anything is done for it.

        Raises:  QueueFull
        """
        if self._admitted_rows and self._admitted_rows + rows > self._max_queue_rows:
            wait_s = max(1, ceil(self._admitted_rows / self._rows_per_s)) if self._rows_per_s else 1
            raise QueueFull(
                f"queue: {self._admitted_rows} rows wait, {rows} more exceed {self._max_queue_rows}; "
                f"try again in {wait_s} s",
                headers={"Retry-After": str(wait_s)},
            )

    def is_wedged(self, timeout_s: float) -> bool:
        """Whether a run will not end: it takes longer than this, and many times as long as it was expected to."""
        now = perf_counter()
        return any(
            now - began > max(timeout_s, _WEDGED_TIMES * batch.run_us / 1e6) for batch, began in self._running.items()
        )

    def forgive(self, seconds: float) -> None:
        """Take nothing of this time for that of the runs which go on: the process had none."""
        for batch in self._running:
            self._running[batch] += seconds

    def wake(self, queue: Queue) -> None:
        """Note that a queue has work. The run begins once this turn of the loop is over, with all it brought."""
        if queue not in self._waiting:
            self._waiting.append(queue)
        self._wake()

    def close(self) -> None:
        """End the engine threads once their runs are over."""
        self._executor.shutdown(wait=True)

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """Begin runs while there is work, and cores for it."""
        self._woken = False
        while due := self._due():
            queue, batch = due
            if batch.run_us <= self._loop_budget_us:
                self._run_here(queue, batch)
                self._wake()  # what comes next waits for its turn of the loop, as everything does
                return
            self._run_in_thread(queue, batch)

    def _due(self) -> tuple[Queue, Batch] | None:
        """The batch whose turn it is, those that are tried again first, if the cores that it takes are free."""
        if self._again:
            queue, again = self._again[0]
            return self._again.popleft() if again.cores <= self._free_for(queue) else None
        while self._waiting:
            queue = self._waiting[0]
            free = self._free_for(queue)
            cores = queue.cores(free=free)
            if cores > free:
                return None
            self._waiting.popleft()
            batch = queue.form(cores=cores, free=free)
            if queue.has_jobs:
                self._waiting.append(queue)
            if batch:
                return queue, batch
        return None

    def _free_for(self, queue: Queue) -> int:
        """Cores that the next run of a queue may take: those that are free; else one for a run ahead, or that another
        process lends; else none.
        """
        if self._free_cores > 0:
            return self._free_cores
        return int(self._may_run_ahead or self._may_borrow_for(queue))

    @property
    def _may_run_ahead(self) -> bool:
        """Whether every core has a long run of its own, and no run is ahead of them."""
        all_are_long = all(batch.cores == 1 and batch.run_us >= _LONG_US for batch in self._running)
        return self.cores > 1 and self._free_cores == 0 and all_are_long

    def _may_borrow_for(self, queue: Queue) -> bool:
        """Whether a queue has rows enough for a core that is another process's and idle."""
        others_are_idle = self.machine_cores > self.cores and self._metrics.busy_cores.total() < self.machine_cores
        return others_are_idle and queue.has_full_batch()

    def _run_here(self, queue: Queue, batch: Batch) -> None:
        began = perf_counter()
        try:
            outputs = batch.run(*batch.inputs())
        except Exception as error:
            self._recover(queue, batch, error)
        else:
            self._give(queue, batch, outputs, perf_counter() - began)

    def _run_in_thread(self, queue: Queue, batch: Batch) -> None:
        loop = asyncio.get_running_loop()
        run = batch.run if batch.run_us < _STOPPABLE_US else partial(batch.run, stop=_stop_when_deserted(batch))
        self._hold_cores(batch.cores)
        self._running[batch] = perf_counter()

        def work() -> None:
            began = perf_counter()
            try:
                outputs = run(*batch.inputs())
            except Exception as error:
                loop.call_soon_threadsafe(self._failed, queue, batch, error)
            else:
                loop.call_soon_threadsafe(self._finished, queue, batch, outputs, perf_counter() - began)

        self._executor.submit(work)

    def _finished(self, queue: Queue, batch: Batch, outputs: tuple[Rows, ...], run_s: float) -> None:
        self._ended(batch)
        self._next()
        self._give(queue, batch, outputs, run_s)

    def _failed(self, queue: Queue, batch: Batch, error: Exception) -> None:
        self._ended(batch)
        self._recover(queue, batch, error)
        self._next()

    def _ended(self, batch: Batch) -> None:
        self._hold_cores(-batch.cores)
        del self._running[batch]

    def _hold_cores(self, cores: int) -> None:
        self._free_cores -= cores
        self._metrics.busy_cores.add(cores)

    def _recover(self, queue: Queue, batch: Batch, error: Exception) -> None:
        """After a failed run, try its jobs once more, each by itself; one that was by itself has failed."""
        is_deserted = all(job.reply.done() for job in batch.jobs)  # and was ended, as nobody waited any more
        if not is_deserted:
            self._metrics.failed_runs.add()
        if isinstance(error, OutOfMemory) and (most := queue.shrink(batch.rows)):
            reason = str(error.__cause__).partition("\n")[0]
            logger.warning("%s (%s); runs of at most %d follow", error, reason, most)
        if len(batch.jobs) == 1:
            if not is_deserted:
                queue.went_badly()
            batch.fail(error)
        else:
            self._again.extend((queue, alone) for alone in batch.apart())
            self._wake()

    def _give(self, queue: Queue, batch: Batch, outputs: tuple[Rows, ...], run_s: float) -> None:
        side_by_side = max(self.cores // batch.cores, len(self._running))
        rate = side_by_side * batch.engine_rows / max(run_s, 1e-9)
        self._rows_per_s = 0.9 * self._rows_per_s + 0.1 * rate if self._rows_per_s else rate
        self._metrics.batch_s.observe(run_s)
        self._metrics.batch_rows.observe(len(outputs[0]))
        queue.went_well()
        batch.give(outputs, run_s=run_s)


class Admission:
    """What a request holds of a lane while its rows run."""

    __slots__ = ("_lane", "_rows")

    def __init__(self, lane: Lane, rows: int) -> None:
        self._lane = lane
        self._rows = rows

    def __enter__(self) -> None:
        self._lane.hold(self._rows)

    def __exit__(self, *_error: object) -> None:
        self._lane.hold(-self._rows)


def _stop_when_deserted(batch: Batch) -> Stop:
    """Asks to end a run once none of its callers waits any more."""
    stop = Stop()

    def left(_reply: object) -> None:
        if all(job.reply.done() for job in batch.jobs):
            stop.ask()

    for job in batch.jobs:
        job.reply.add_done_callback(left)
    return stop
