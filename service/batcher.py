"""Waiting jobs become one batch, and each caller gets its own rows back.

A batch is what is waiting when the engine is free; there is no timer. Its rows have one shape. All graphs of a process
share one lane and its cores, so that they never fight for them. Everything here runs on the event loop, except the run
of a graph: only one that costs next to nothing runs there too.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.budget import LOOP_BUDGET_US
from service.errors import QueueFull

Rows = NDArray[Any]
Run = Callable[..., tuple[Rows, ...]]
RowShape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """What rows of one shape are to a graph: how many run together at most, the engine rows that each counts, and what
    a run is expected to take, a part for itself and a part for each row.

    Units:  microseconds by the clock
    """

    max_rows: int
    engine_rows: float
    run_us: float
    row_us: float


@dataclass(frozen=True, slots=True)
class Done:
    """A job's outputs, a row for each of its rows, and where the time went.

    Units:  queue_s until its first batch began, run_s of the batches that held its rows; batch_rows of the largest
    """

    outputs: tuple[Rows, ...]
    queue_s: float
    run_s: float
    batch_rows: int


class Job:
    """One request's rows for one graph, and the reply that its caller awaits.

    Shapes:  inputs (n, *row_shape), one array for each input of the graph, n the same in all
    """

    __slots__ = (
        "batch_rows", "given", "inputs", "outputs", "queued_at", "reply",
        "row_shapes", "rows", "run_s", "started_at", "taken",
    )  # fmt: skip

    def __init__(self, inputs: tuple[Rows, ...], reply: "asyncio.Future[Done]") -> None:
        self.inputs = inputs
        self.row_shapes: tuple[RowShape, ...] = tuple([rows.shape[1:] for rows in inputs])
        self.rows = len(inputs[0])
        self.reply = reply
        self.taken = 0
        self.given = 0
        self.outputs: tuple[Rows, ...] = ()
        self.queued_at = perf_counter()
        self.started_at = 0.0
        self.run_s = 0.0
        self.batch_rows = 0

    def take(self, most: int) -> slice:
        """The place of the next rows, `most` at most."""
        start = self.taken
        self.taken = min(start + most, self.rows)
        return slice(start, self.taken)

    @property
    def left(self) -> int:
        """Rows that no batch has taken yet."""
        return self.rows - self.taken

    def give(self, place: slice, outputs: tuple[Rows, ...], *, run_s: float, batch_rows: int) -> None:
        """Keep the outputs of the rows at a place; reply when those of all rows are there."""
        count = place.stop - place.start
        if count == self.rows:
            self.outputs = outputs
        else:
            if not self.outputs:
                self.outputs = tuple([np.empty((self.rows, *part.shape[1:]), part.dtype) for part in outputs])
            for whole, part in zip(self.outputs, outputs, strict=True):
                whole[place] = part
        self.given += count
        self.run_s += run_s
        self.batch_rows = max(self.batch_rows, batch_rows)
        if self.given == self.rows and not self.reply.done():
            self.reply.set_result(Done(self.outputs, self.started_at - self.queued_at, self.run_s, self.batch_rows))


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of several jobs, all of one shape, that run together; `engine_rows` is what they count.

    Units:  run_us microseconds by the clock, as expected
    """

    jobs: tuple[Job, ...]
    places: tuple[slice, ...]
    engine_rows: float
    run_us: float

    def inputs(self) -> tuple[Rows, ...]:
        """All rows of each input; those of a lone job are passed on without a copy."""
        if len(self.jobs) == 1:
            (job,), (place,) = self.jobs, self.places
            return tuple([rows[place] for rows in job.inputs])
        taken = [[rows[place] for rows in job.inputs] for job, place in zip(self.jobs, self.places, strict=True)]
        return tuple([np.concatenate(rows) for rows in zip(*taken, strict=True)])

    def give(self, outputs: tuple[Rows, ...], *, run_s: float) -> None:
        """Hand each job the outputs of its own rows."""
        start, total = 0, len(outputs[0])
        for job, place in zip(self.jobs, self.places, strict=True):
            end = start + place.stop - place.start
            job.give(place, tuple([output[start:end] for output in outputs]), run_s=run_s, batch_rows=total)
            start = end

    def fail(self, error: BaseException) -> None:
        """Tell every job that its run failed."""
        for job in self.jobs:
            if not job.reply.done():
                job.reply.set_exception(error)


class Queue:
    """The jobs that wait for one graph, whose run takes `cores` of the lane's; `load` is told the shape of a row of the
    graph's first input.
    """

    def __init__(self, run: Run, *, lane: "Lane", load: Callable[[RowShape], Load], cores: int = 1) -> None:
        self.run = run
        self.cores = cores
        self._lane = lane
        self._load = load
        self._jobs: deque[Job] = deque()

    def submit(self, *inputs: Rows) -> "asyncio.Future[Done]":
        """The reply to a job of these rows. Cancelling it takes back what no batch has taken yet.

        Shapes:  inputs (n, *row_shape)
        """
        reply: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._jobs.append(Job(inputs, reply))
        self._lane.wake(self)
        return reply

    def form(self) -> Batch | None:
        """The next batch: of the jobs whose rows have the shape of the first one's, an equal share for each, then what
        still fits in order of arrival.

        While others of its shape wait, no job fills more than half of a batch. So a lone row is in the next batch of
        its shape unless more such jobs wait than a batch has rows; and shapes take turns.
        """
        waiting = [job for job in self._jobs if not job.reply.done()]
        if not waiting:
            self._jobs.clear()
            return None
        row_shapes = waiting[0].row_shapes
        alike = [job for job in waiting if job.row_shapes == row_shapes]
        load = self._load(row_shapes[0])
        shares = _shares([job.left for job in alike], load.max_rows)
        now = perf_counter()
        jobs, places = [], []
        for job, share in zip(alike, shares, strict=True):
            if share:
                job.started_at = job.started_at or now
                jobs.append(job)
                places.append(job.take(share))
        # Those that were served go behind those that were not.
        served = set(jobs)
        unserved = [job for job in waiting if job not in served]
        self._jobs = deque(unserved + [job for job in jobs if job.left])
        rows = sum(shares)
        return Batch(tuple(jobs), tuple(places), load.engine_rows * rows, load.run_us + load.row_us * rows)

    def __bool__(self) -> bool:
        return bool(self._jobs)


def _shares(wanted: list[int], most: int) -> list[int]:
    """How many rows each job gets of a batch of `most`."""
    cap = most if len(wanted) == 1 else max(1, most // 2)
    if sum(wanted) <= most and max(wanted) <= cap:
        return wanted
    fair = min(cap, max(1, most // len(wanted)))
    shares, room = [], most
    for want in wanted:
        shares.append(min(want, fair, room))
        room -= shares[-1]
    for place, want in enumerate(wanted):
        extra = min(want - shares[place], cap - shares[place], room)
        shares[place] += extra
        room -= extra
    return shares


class Lane:
    """The cores that all graphs of a process share, and the account of engine rows that were admitted to them.

    A run begins when as many cores are free as its graph takes: all of them for most graphs, so that runs follow each
    other; one for a graph so small that its threads would wait for each other, so that several run side by side.
    """

    def __init__(self, *, max_queue_rows: int, cores: int = 1) -> None:
        self._executor = ThreadPoolExecutor(max_workers=cores, thread_name_prefix="engine")
        self._waiting: deque[Queue] = deque()
        self.cores = self._free_cores = cores
        self._woken = False
        self._max_queue_rows = max_queue_rows
        self._admitted_rows = 0
        self._rows_per_s = 0.0

    @contextmanager
    def admit(self, rows: int) -> Iterator[None]:
        """Room for all engine rows that a request will run, held until it has run them.

        Raises:  QueueFull with a Retry-After from the measured rate; a request alone is always admitted
        """
        if self._admitted_rows and self._admitted_rows + rows > self._max_queue_rows:
            wait_s = max(1, ceil(self._admitted_rows / self._rows_per_s)) if self._rows_per_s else 1
            raise QueueFull(
                f"queue: {self._admitted_rows} rows wait, {rows} more exceed {self._max_queue_rows}; "
                f"try again in {wait_s} s",
                headers={"Retry-After": str(wait_s)},
            )
        self._admitted_rows += rows
        try:
            yield
        finally:
            self._admitted_rows -= rows

    def wake(self, queue: Queue) -> None:
        """Note that a queue has work. The run begins once this turn of the loop is over, with all it brought."""
        if queue not in self._waiting:
            self._waiting.append(queue)
        self._wake()

    def close(self) -> None:
        """End the engine thread once its run is over."""
        self._executor.shutdown(wait=True)

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """Begin runs while there is work, and cores for the queue whose turn it is."""
        self._woken = False
        while self._waiting and self._waiting[0].cores <= self._free_cores:
            queue = self._waiting.popleft()
            batch = queue.form()
            if queue:
                self._waiting.append(queue)
            if batch is None:
                continue
            if batch.run_us <= LOOP_BUDGET_US:
                self._run_here(queue, batch)
                self._wake()  # what comes next waits for its turn of the loop, as everything does
                return
            self._run_in_thread(queue, batch)

    def _run_here(self, queue: Queue, batch: Batch) -> None:
        began = perf_counter()
        try:
            outputs = queue.run(*batch.inputs())
        except Exception as error:
            batch.fail(error)
        else:
            self._give(queue, batch, outputs, perf_counter() - began)

    def _run_in_thread(self, queue: Queue, batch: Batch) -> None:
        loop = asyncio.get_running_loop()
        self._free_cores -= queue.cores

        def work() -> None:
            began = perf_counter()
            try:
                outputs = queue.run(*batch.inputs())
            except Exception as error:
                loop.call_soon_threadsafe(self._failed, queue, batch, error)
            else:
                loop.call_soon_threadsafe(self._finished, queue, batch, outputs, perf_counter() - began)

        self._executor.submit(work)

    def _finished(self, queue: Queue, batch: Batch, outputs: tuple[Rows, ...], run_s: float) -> None:
        self._free_cores += queue.cores
        self._next()
        self._give(queue, batch, outputs, run_s)

    def _failed(self, queue: Queue, batch: Batch, error: Exception) -> None:
        self._free_cores += queue.cores
        self._next()
        batch.fail(error)

    def _give(self, queue: Queue, batch: Batch, outputs: tuple[Rows, ...], run_s: float) -> None:
        side_by_side = self.cores // queue.cores
        rate = side_by_side * batch.engine_rows / max(run_s, 1e-9)
        self._rows_per_s = 0.9 * self._rows_per_s + 0.1 * rate if self._rows_per_s else rate
        batch.give(outputs, run_s=run_s)
