"""Waiting jobs become one batch, and each caller gets its own rows back.

A batch is what is waiting when the engine is free; there is no timer. Its rows have one shape. All graphs of a process
share one lane, so that they never fight for cores. Everything here runs on the event loop, except the run of a graph.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import QueueFull

Rows = NDArray[Any]
Run = Callable[..., tuple[Rows, ...]]
RowShape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """What rows of one shape are to a graph: how many run together at most, and the engine rows that each counts."""

    max_rows: int
    engine_rows: float


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
        "batch_rows", "given", "inputs", "parts", "queued_at", "reply",
        "row_shapes", "rows", "run_s", "started_at", "taken",
    )  # fmt: skip

    def __init__(self, inputs: tuple[Rows, ...], reply: "asyncio.Future[Done]") -> None:
        self.inputs = inputs
        self.row_shapes: tuple[RowShape, ...] = tuple([rows.shape[1:] for rows in inputs])
        self.rows = len(inputs[0])
        self.reply = reply
        self.taken = 0
        self.given = 0
        self.parts: list[tuple[Rows, ...]] = []
        self.queued_at = perf_counter()
        self.started_at = 0.0
        self.run_s = 0.0
        self.batch_rows = 0

    def take(self, most: int) -> tuple[Rows, ...]:
        """The next rows of each input, `most` at most."""
        start = self.taken
        self.taken = min(start + most, self.rows)
        return tuple([rows[start : self.taken] for rows in self.inputs])

    @property
    def left(self) -> int:
        """Rows that no batch has taken yet."""
        return self.rows - self.taken

    def give(self, part: tuple[Rows, ...], *, run_s: float, batch_rows: int) -> None:
        """Keep the outputs of the rows last taken; reply when those of the last row are there.

        The next batch is formed before the outputs of the last are given, so `left` counts too far ahead here.
        """
        self.parts.append(part)
        self.given += len(part[0])
        self.run_s += run_s
        self.batch_rows = max(self.batch_rows, batch_rows)
        if self.given == self.rows and not self.reply.done():
            outputs = _joined(self.parts)
            self.reply.set_result(Done(outputs, self.started_at - self.queued_at, self.run_s, self.batch_rows))


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of several jobs, all of one shape, that run together; `engine_rows` is what they count."""

    jobs: tuple[Job, ...]
    parts: tuple[tuple[Rows, ...], ...]
    engine_rows: float

    def inputs(self) -> tuple[Rows, ...]:
        """All rows of each input; those of a lone job are passed on without a copy."""
        return _joined(self.parts)

    def give(self, outputs: tuple[Rows, ...], *, run_s: float) -> None:
        """Hand each job the outputs of its own rows."""
        start, total = 0, sum([len(part[0]) for part in self.parts])
        for job, part in zip(self.jobs, self.parts, strict=True):
            end = start + len(part[0])
            job.give(tuple([output[start:end] for output in outputs]), run_s=run_s, batch_rows=total)
            start = end

    def fail(self, error: BaseException) -> None:
        """Tell every job that its run failed."""
        for job in self.jobs:
            if not job.reply.done():
                job.reply.set_exception(error)


class Queue:
    """The jobs that wait for one graph; `load` is told the shape of a row of the graph's first input."""

    def __init__(self, run: Run, *, lane: "Lane", load: Callable[[RowShape], Load]) -> None:
        self.run = run
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
        jobs, parts = [], []
        for job, share in zip(alike, shares, strict=True):
            if share:
                job.started_at = job.started_at or now
                jobs.append(job)
                parts.append(job.take(share))
        # Those that were served go behind those that were not.
        served = set(jobs)
        unserved = [job for job in waiting if job not in served]
        self._jobs = deque(unserved + [job for job in jobs if job.left])
        return Batch(tuple(jobs), tuple(parts), load.engine_rows * sum(shares))

    def __bool__(self) -> bool:
        return bool(self._jobs)


def _joined(parts: Sequence[tuple[Rows, ...]]) -> tuple[Rows, ...]:
    if len(parts) == 1:
        return parts[0]
    return tuple([np.concatenate(rows) for rows in zip(*parts, strict=True)])


def _shares(wanted: list[int], most: int) -> list[int]:
    """How many rows each job gets of a batch of `most`."""
    cap = most if len(wanted) == 1 else max(1, most // 2)
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
    """One engine thread for all graphs of a process, and the account of engine rows that were admitted to it."""

    def __init__(self, *, max_queue_rows: int) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._waiting: deque[Queue] = deque()
        self._busy = False
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
        if not self._busy:
            self._busy = True
            asyncio.get_running_loop().call_soon(self._next)

    def close(self) -> None:
        """End the engine thread once its run is over."""
        self._executor.shutdown(wait=True)

    def _next(self) -> None:
        self._busy = False
        while self._waiting:
            queue = self._waiting.popleft()
            batch = queue.form()
            if queue:
                self._waiting.append(queue)
            if batch:
                self._busy = True
                self._start(queue.run, batch)
                return

    def _start(self, run: Run, batch: Batch) -> None:
        loop = asyncio.get_running_loop()

        def work() -> None:
            began = perf_counter()
            try:
                outputs = run(*batch.inputs())
            except Exception as error:
                loop.call_soon_threadsafe(self._failed, batch, error)
            else:
                loop.call_soon_threadsafe(self._finished, batch, outputs, perf_counter() - began)

        self._executor.submit(work)

    def _finished(self, batch: Batch, outputs: tuple[Rows, ...], run_s: float) -> None:
        rate = batch.engine_rows / max(run_s, 1e-9)
        self._rows_per_s = 0.9 * self._rows_per_s + 0.1 * rate if self._rows_per_s else rate
        self._next()
        batch.give(outputs, run_s=run_s)

    def _failed(self, batch: Batch, error: Exception) -> None:
        self._next()
        batch.fail(error)
