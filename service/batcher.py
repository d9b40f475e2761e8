"""Waiting jobs become one batch, and each caller gets its own rows back.

A batch is what is waiting when the engine is free; there is no timer. Its rows have one shape. When it is free, and for
which queue, `lane` knows.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[Any]
Run = Callable[..., tuple[Rows, ...]]
RowShape = tuple[int, ...]


# After so many good runs since the device was out of memory, batches may have twice as many rows.
_RUNS_TO_RECOVER = 100
_LARGEST_CAP = 2**16


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


class Done(NamedTuple):
    """A job's outputs, a row for each of its rows, and where the time went.

    Units:  moments in seconds, as perf_counter gives them: its rows queued, its first batch began, its last one ended;
            run_s seconds of the batches that held its rows; batch_rows of the largest
    """

    outputs: tuple[Rows, ...]
    queued_at: float
    started_at: float
    ended_at: float
    run_s: float
    batch_rows: int

    @property
    def queue_s(self) -> float:
        """Seconds until its first batch began."""
        return self.started_at - self.queued_at


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
            ended_at = perf_counter()
            done = Done(self.outputs, self.queued_at, self.started_at, ended_at, self.run_s, self.batch_rows)
            self.reply.set_result(done)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows of several jobs, all of one shape, that `run` takes together on so many cores; `engine_rows` is what they
    count.

    Units:  run_us microseconds by the clock, as expected
    """

    run: Run
    cores: int
    jobs: tuple[Job, ...]
    places: tuple[slice, ...]
    engine_rows: float
    run_us: float

    @property
    def rows(self) -> int:
        """How many rows run together."""
        return sum([place.stop - place.start for place in self.places])

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

    def apart(self) -> list["Batch"]:
        """Each job by itself, of those whose callers still wait."""
        return [
            Batch(self.run, self.cores, (job,), (place,), self.engine_rows * share, self.run_us * share)
            for job, place in zip(self.jobs, self.places, strict=True)
            if not job.reply.done()
            for share in [(place.stop - place.start) / self.rows]
        ]

    def fail(self, error: BaseException) -> None:
        """Tell every job that its run failed."""
        for job in self.jobs:
            if not job.reply.done():
                job.reply.set_exception(error)


class Queue:
    """The jobs that wait for one graph, whose run takes `cores` of the lane's; `wake` is called when there is one more,
    and `load` is told the shape of a row of the graph's first input. Where the graph can also run on one core, by
    `run_single`, its rows are dealt to the cores once there are enough for all: cores that each do their own wait for
    nobody.
    """

    def __init__(
        self,
        run: Run,
        *,
        wake: Callable[["Queue"], None],
        load: Callable[[RowShape], Load],
        cores: int = 1,
        run_single: Run | None = None,
    ) -> None:
        self.run = run
        self._cores = cores
        self._run_single = run_single
        self._wake = wake
        self._load = load
        self._jobs: deque[Job] = deque()
        self._cap: int | None = None
        self._runs_to_recover = 0
        self.failed_runs = 0
        """Runs of single jobs that have failed since the last good one."""

    def submit(self, *inputs: Rows) -> "asyncio.Future[Done]":
        """The reply to a job of these rows. Cancelling it takes back what no batch has taken yet.

        Shapes:  inputs (n, *row_shape)
        """
        reply: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._jobs.append(Job(inputs, reply))
        self._wake(self)
        return reply

    def cores(self, *, free: int) -> int:
        """How many cores the next run takes, where so many are free."""
        if self._run_single and (free < self._cores or self._rows_reach(self._cores)):
            return 1
        return self._cores

    @property
    def has_jobs(self) -> bool:
        """Whether any job waits."""
        return bool(self._jobs)

    def has_full_batch(self) -> bool:
        """Whether as many rows wait as one batch takes."""
        return bool(self._jobs) and self._rows_reach(self._load(self._jobs[0].row_shapes[0]).max_rows)

    def form(self, *, cores: int, free: int) -> Batch | None:
        """The next batch, to run on so many cores: of the jobs whose rows have the shape of the first one's, an equal
        share for each, then what still fits in order of arrival.

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
        most = load.max_rows if self._cap is None else min(load.max_rows, self._cap)
        wanted = [job.left for job in alike]
        is_dealt = cores < self._cores
        if is_dealt:
            most = min(most, ceil(sum(wanted) / free))
        shares = _shares(wanted, most)
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
        return Batch(
            run=self._run_single if is_dealt and self._run_single else self.run,
            cores=cores,
            jobs=tuple(jobs),
            places=tuple(places),
            engine_rows=load.engine_rows * rows,
            run_us=load.run_us + load.row_us * rows,
        )

    def shrink(self, rows: int) -> int | None:
        """Form smaller batches from now on, as so many rows were too many for the device: the most rows that they have,
        or None if none had more before.
        """
        before, self._cap = self._cap, min(self._cap or rows, max(1, rows // 2))
        self._runs_to_recover = _RUNS_TO_RECOVER
        return None if self._cap == before else self._cap

    def went_well(self) -> None:
        """Note a run without a fault; after many of them, batches may grow again."""
        self.failed_runs = 0
        if self._cap is not None:
            self._runs_to_recover -= 1
            if self._runs_to_recover == 0:
                self._cap, self._runs_to_recover = 2 * self._cap, _RUNS_TO_RECOVER
                if self._cap > _LARGEST_CAP:
                    self._cap = None

    def went_badly(self) -> None:
        """Note that a run of a single job has failed."""
        self.failed_runs += 1

    def _rows_reach(self, count: int) -> bool:
        """Whether at least so many rows wait."""
        rows = 0
        for job in self._jobs:
            rows += job.left
            if rows >= count:
                return True
        return False


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
