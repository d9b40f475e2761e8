"""Batches, on a real event loop and a real engine thread; the engine is a function that a test can hold."""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service import lane as lanes
from service.batcher import Batch, Done, Job, Load, Queue
from service.budget import LOOP_BUDGET_US
from service.errors import QueueFull
from service.lane import Lane
from service.observation import tally
from service.observation.metrics import Metrics
from service.observation.tally import Tally

Rows = NDArray[Any]

# Far over what the event loop does itself.
LONG_US = 1e4

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12)
most = st.integers(1, 16)


class Engine:
    """Doubles its first input, negates its last and writes down every batch; while it is not open, a run waits, so that
    jobs gather.
    """

    def __init__(self) -> None:
        self.batches: list[Rows] = []
        self.open = threading.Event()
        self.open.set()
        self.started = threading.Event()
        self.failing = False

    def run(self, *inputs: Rows) -> tuple[Rows, ...]:
        self.batches.append(inputs[0])
        self.started.set()
        assert self.open.wait(20)
        if self.failing:
            raise RuntimeError("the engine failed")
        return inputs[0] * 2, -inputs[-1]

    @asynccontextmanager
    async def held(self, queue: Queue) -> AsyncIterator[None]:
        """A run of one row is under way; what is submitted inside gathers behind it."""
        self.open.clear()
        queue.submit(np.full((1, 1), -1))
        await self.running()
        yield
        self.open.set()

    async def running(self) -> None:
        """Wait until a run has begun."""
        while not self.started.is_set():  # noqa: ASYNC110  another thread sets it
            await asyncio.sleep(0)

    @property
    def behind(self) -> list[Rows]:
        """The batches that followed the held one."""
        return self.batches[1:]


def at_most(limit: int) -> Callable[[tuple[int, ...]], Load]:
    """The load of a graph that runs so many rows at a time, of whatever shape."""
    return lambda _row_shape: Load(limit, 1.0, run_us=LONG_US, row_us=0.0)


def jobs_of(counts: list[int]) -> list[Rows]:
    """Rows that say whose they are: 1000 · job + row."""
    return [rows_of(job, count) for job, count in enumerate(counts)]


def rows_of(job: int, count: int, *, width: int = 1) -> Rows:
    """The rows of one job, each as wide as asked."""
    return np.arange(1000 * job, 1000 * job + count).reshape(-1, 1).repeat(width, axis=1)


def on_a_lane(scenario: Callable[[Lane, Engine], Coroutine[Any, Any, None]], *, max_queue_rows: int = 10**6) -> Engine:
    engine = Engine()

    async def main() -> None:
        lane = Lane(max_queue_rows=max_queue_rows, metrics=Metrics())
        try:
            await asyncio.wait_for(scenario(lane, engine), 30)
        finally:
            engine.open.set()
            lane.close()

    asyncio.run(main())
    return engine


async def turn() -> None:
    """Let the loop do what is ready."""
    for _ in range(3):
        await asyncio.sleep(0)


def assert_own(done: Done, *inputs: Rows) -> None:
    doubled, negated = done.outputs
    np.testing.assert_array_equal(doubled, inputs[0] * 2)
    np.testing.assert_array_equal(negated, -inputs[-1])


@settings(max_examples=100)
@given(counts=sizes, limit=most)
def test_every_caller_gets_its_own_rows_at_any_mix_of_sizes(counts: list[int], limit: int) -> None:
    jobs = jobs_of(counts)

    async def scenario(lane: Lane, engine: Engine) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=at_most(limit))
        replies = await asyncio.gather(*(queue.submit(rows) for rows in jobs))
        for reply, rows in zip(replies, jobs, strict=True):
            assert_own(reply, rows)

    engine = on_a_lane(scenario)
    assert all(1 <= len(batch) <= limit for batch in engine.batches)
    ran = np.concatenate(engine.batches)
    np.testing.assert_array_equal(np.sort(ran, axis=0), np.concatenate(jobs))


@settings(max_examples=50)
@given(waves=st.lists(sizes, min_size=1, max_size=4), limit=most)
def test_callers_that_arrive_while_others_run_get_their_own_rows(waves: list[list[int]], limit: int) -> None:
    async def scenario(lane: Lane, engine: Engine) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=at_most(limit))
        awaited: list[tuple[Rows, asyncio.Future[Done]]] = []
        for wave in waves:
            awaited += [(rows, queue.submit(rows)) for rows in jobs_of(wave)]
            await turn()
        for rows, reply in awaited:
            assert_own(await reply, rows)

    engine = on_a_lane(scenario)
    assert max(map(len, engine.batches)) <= limit


@settings(max_examples=50)
@given(encoding=sizes, decoding=sizes, limit=most)
def test_two_graphs_of_one_lane_never_run_at_once_and_keep_their_rows_apart(
    encoding: list[int], decoding: list[int], limit: int
) -> None:
    busy = threading.Lock()

    def alone(name: int) -> Callable[[Rows], tuple[Rows, ...]]:
        def run(rows: Rows) -> tuple[Rows, ...]:
            assert busy.acquire(blocking=False), "two runs at once"
            try:
                return (rows + name,)
            finally:
                busy.release()

        return run

    async def scenario(lane: Lane, _engine: Engine) -> None:
        encoder, decoder = (Queue(alone(name), wake=lane.wake, load=at_most(limit)) for name in (10**6, 2 * 10**6))
        replies = [(rows, encoder.submit(rows), 10**6) for rows in jobs_of(encoding)]
        replies += [(rows, decoder.submit(rows), 2 * 10**6) for rows in jobs_of(decoding)]
        for rows, reply, name in replies:
            np.testing.assert_array_equal((await reply).outputs[0], rows + name)

    on_a_lane(scenario)


@pytest.mark.parametrize(("rows", "limit"), [(5, 2), (130, 64), (9, 4), (64, 64), (65, 64), (2, 2)])
def test_a_lone_job_that_needs_several_batches_is_answered_whole(rows: int, limit: int) -> None:
    (job,) = jobs_of([rows])

    async def scenario(lane: Lane, engine: Engine) -> None:
        done = await Queue(engine.run, wake=lane.wake, load=at_most(limit)).submit(job)
        assert_own(done, job)
        assert done.batch_rows == min(rows, limit)

    engine = on_a_lane(scenario)
    assert list(map(len, engine.batches)) == [limit] * (rows // limit) + [rows % limit] * (rows % limit > 0)


def test_a_batch_is_what_is_waiting_when_the_engine_is_free() -> None:
    async def scenario(lane: Lane, engine: Engine) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=at_most(16))
        async with engine.held(queue):
            replies = []
            for rows in jobs_of([1, 2, 1, 3]):
                replies.append(queue.submit(rows))
                await turn()
        for reply in replies:
            assert (await reply).batch_rows == 7

    assert on_a_lane(scenario).behind[0].ravel().tolist() == [0, 1000, 1001, 2000, 3000, 3001, 3002]


def test_those_who_arrive_in_one_turn_of_the_loop_share_a_batch() -> None:
    async def scenario(lane: Lane, engine: Engine) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=at_most(16))
        await asyncio.gather(*(queue.submit(rows) for rows in jobs_of([1] * 16)))

    assert list(map(len, on_a_lane(scenario).batches)) == [16]


@settings(max_examples=80)
@given(counts=st.lists(st.integers(1, 60), min_size=2, max_size=10), limit=st.integers(2, 16))
def test_no_job_fills_more_than_half_a_batch_while_others_wait(counts: list[int], limit: int) -> None:
    async def scenario(lane: Lane, engine: Engine) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=at_most(limit))
        async with engine.held(queue):
            replies = [queue.submit(rows) for rows in jobs_of(counts)]
            await turn()
        await asyncio.gather(*replies)

    left = dict(enumerate(counts))
    for batch in on_a_lane(scenario).behind:
        owners, taken = np.unique(batch // 1000, return_counts=True)
        others_wait = len(left) > 1
        for owner, rows in zip(owners.tolist(), taken.tolist(), strict=True):
            assert not others_wait or rows <= limit // 2
            left[owner] -= rows
            if left[owner] == 0:
                del left[owner]
        assert len(batch) == limit or all(owner in owners for owner in left), "room was left while somebody waited"
    assert not left


@settings(max_examples=80)
@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=15), limit=st.integers(2, 16), place=st.floats(0, 1))
def test_a_lone_row_is_in_the_next_batch_while_jobs_are_fewer_than_its_rows(
    counts: list[int], limit: int, place: float
) -> None:
    counts = counts[: limit - 1]
    lone = int(place * len(counts))
    counts.insert(lone, 1)

    async def scenario(lane: Lane, engine: Engine) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=at_most(limit))
        async with engine.held(queue):
            replies = [queue.submit(rows) for rows in jobs_of(counts)]
            await turn()
        await asyncio.gather(*replies)

    assert 1000 * lone in on_a_lane(scenario).behind[0]


def test_a_lone_row_behind_a_crowd_waits_its_turn_and_no_longer() -> None:
    """Forty jobs of ten rows for batches of eight: whoever was not served comes first in the next batch."""

    async def scenario(lane: Lane, engine: Engine) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=at_most(8))
        async with engine.held(queue):
            replies = [queue.submit(rows) for rows in jobs_of([10] * 40 + [1])]
            await turn()
        await asyncio.gather(*replies)

    batches = on_a_lane(scenario).behind
    served = next(index for index, batch in enumerate(batches) if 40_000 in batch)
    assert served == 40 // 8


def test_a_row_that_arrives_late_is_not_kept_behind_a_long_request() -> None:
    async def scenario(lane: Lane, engine: Engine) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=at_most(4))
        long, late = jobs_of([400, 1])
        async with engine.held(queue):
            whole = queue.submit(long)
            await turn()
            lone = queue.submit(late)
            await turn()
        await lone
        assert not whole.done()
        assert_own(await whole, long)

    assert 1000 in on_a_lane(scenario).behind[0]


def test_a_caller_who_left_is_dropped_as_the_batch_forms() -> None:
    async def scenario(lane: Lane, engine: Engine) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=at_most(16))
        jobs = jobs_of([2, 3, 2])
        async with engine.held(queue):
            replies = [queue.submit(rows) for rows in jobs]
            await turn()
            replies[1].cancel()
        assert_own(await replies[0], jobs[0])
        assert_own(await replies[2], jobs[2])

    assert on_a_lane(scenario).behind[0].ravel().tolist() == [0, 1, 2000, 2001]


def test_a_caller_who_leaves_half_way_takes_back_what_no_batch_has_taken() -> None:
    async def scenario(lane: Lane, engine: Engine) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=at_most(4))
        engine.open.clear()
        leaving = queue.submit(np.arange(100).reshape(-1, 1))
        await engine.running()
        leaving.cancel()
        engine.open.set()
        assert_own(await queue.submit(np.array([[7]])), np.array([[7]]))

    assert list(map(len, on_a_lane(scenario).batches)) == [4, 1]


def test_a_lane_whose_callers_all_left_runs_nothing_and_goes_on() -> None:
    async def scenario(lane: Lane, engine: Engine) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=at_most(4))
        for reply in [queue.submit(rows) for rows in jobs_of([3, 3])]:
            reply.cancel()
        await turn()
        assert not engine.batches
        assert_own(await queue.submit(np.array([[1]])), np.array([[1]]))

    on_a_lane(scenario)


def test_a_run_that_fails_fails_its_own_batch_alone() -> None:
    async def scenario(lane: Lane, engine: Engine) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=at_most(4))
        engine.failing = True
        first = await asyncio.gather(*(queue.submit(rows) for rows in jobs_of([1, 1])), return_exceptions=True)
        assert [str(error) for error in first] == ["the engine failed"] * 2
        engine.failing = False
        assert_own(await queue.submit(np.array([[5]])), np.array([[5]]))

    # The two together, each once more by itself, and the one that came later.
    assert list(map(len, on_a_lane(scenario).batches)) == [2, 1, 1, 1]


def test_a_long_job_that_failed_is_not_run_any_further() -> None:
    async def scenario(lane: Lane, engine: Engine) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=at_most(4))
        engine.failing = True
        with pytest.raises(RuntimeError, match="the engine failed"):
            await queue.submit(np.zeros((100, 1)))

    # One batch more may have been formed before its caller was told.
    assert len(on_a_lane(scenario).batches) <= 2


def test_a_batch_hands_on_a_lone_jobs_rows_without_a_copy() -> None:
    rows = np.zeros((5, 1))

    async def passed_on() -> Rows:
        job = Job((rows,), asyncio.get_running_loop().create_future())
        batch = Batch(np.square, 1, (job,), (job.take(3),), engine_rows=3, run_us=LONG_US)
        (inputs,) = batch.inputs()
        return inputs

    assert np.shares_memory(asyncio.run(passed_on()), rows)


def test_outputs_that_come_out_of_order_stand_in_the_order_of_their_rows() -> None:
    async def replied() -> Done:
        job = Job((rows_of(7, 10),), asyncio.get_running_loop().create_future())
        for place in reversed([job.take(4), job.take(4), job.take(4)]):
            part = rows_of(7, 10)[place]
            job.give(place, (part * 2, -part), run_s=1.0, batch_rows=len(part))
        return job.reply.result()

    done = asyncio.run(replied())
    assert_own(done, rows_of(7, 10))
    assert (done.run_s, done.batch_rows) == (3.0, 4)


# Cores, and the event loop


def test_runs_of_one_core_go_side_by_side_and_one_of_all_cores_alone() -> None:
    """Two small runs wait for each other inside the engine, which they leave only if both are there; the wide one whose
    turn comes next is not overtaken by those behind it, and finds nobody running.
    """
    both, running, seen = threading.Barrier(2), set[str](), []

    def small(rows: Rows) -> tuple[Rows, ...]:
        running.add("small")
        both.wait(20)
        running.discard("small")
        return (rows,)

    def wide(rows: Rows) -> tuple[Rows, ...]:
        seen.append(set(running))
        return (rows,)

    async def main() -> None:
        lane = Lane(max_queue_rows=100, cores=2, metrics=Metrics())
        narrow = Queue(small, wake=lane.wake, load=at_most(4), cores=1)
        other = Queue(small, wake=lane.wake, load=at_most(4), cores=1)
        broad = Queue(wide, wake=lane.wake, load=at_most(4), cores=2)
        replies = [queue.submit(np.zeros((4, 1))) for queue in (narrow, other, broad, narrow, other)]
        await asyncio.wait_for(asyncio.gather(*replies), 30)
        lane.close()

    asyncio.run(main())
    assert seen == [set()]


@dataclass
class Cores:
    """Writes down each run and its numbers; a run on one core ends only when the other core has one too."""

    runs: list[tuple[str, list[int]]] = field(default_factory=list)
    both: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))

    def together(self, rows: Rows) -> tuple[Rows, ...]:
        self.runs.append(("all cores", rows[:, 0].tolist()))
        return (rows,)

    def single(self, rows: Rows) -> tuple[Rows, ...]:
        self.runs.append(("one core", rows[:, 0].tolist()))
        self.both.wait(20)
        return (rows,)


def test_a_lone_row_has_all_cores_and_more_rows_are_dealt_to_them() -> None:
    ran = Cores()

    async def main() -> None:
        lane = Lane(max_queue_rows=100, cores=2, metrics=Metrics())
        queue = Queue(ran.together, wake=lane.wake, load=at_most(4), cores=2, run_single=ran.single)
        await queue.submit(np.array([[0]]))
        await asyncio.gather(*(queue.submit(np.array([[number]])) for number in range(1, 4)))
        await queue.submit(np.arange(4, 12)[:, None])
        await queue.submit(np.array([[12]]))
        lane.close()

    asyncio.run(asyncio.wait_for(main(), 30))
    first, *dealt, last = ran.runs
    assert first == ("all cores", [0])
    assert sorted(dealt[:2]) == [("one core", [1, 2]), ("one core", [3])]
    assert sorted(numbers for _, numbers in dealt[2:]) == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert last == ("all cores", [12])


def test_a_row_that_comes_while_one_core_is_busy_gets_the_other() -> None:
    ran = Cores()

    async def main() -> None:
        lane = Lane(max_queue_rows=100, cores=2, metrics=Metrics())
        busy = Queue(ran.single, wake=lane.wake, load=at_most(4), cores=1)
        queue = Queue(ran.together, wake=lane.wake, load=at_most(4), cores=2, run_single=ran.single)
        await asyncio.gather(busy.submit(np.array([[0]])), queue.submit(np.array([[1]])))
        lane.close()

    asyncio.run(asyncio.wait_for(main(), 30))
    assert sorted(ran.runs) == [("one core", [0]), ("one core", [1])]


@pytest.mark.parametrize(("run_us", "at_once"), [(LONG_US, 3), (LOOP_BUDGET_US + 1, 2)], ids=["long", "short"])
def test_one_more_long_run_than_cores_goes_on_and_no_more_short_ones(run_us: float, at_once: int) -> None:
    gate, begun = threading.Event(), threading.Semaphore(0)

    def run(rows: Rows) -> tuple[Rows, ...]:
        begun.release()
        assert gate.wait(20)
        return (rows,)

    def refused(_rows: Rows) -> tuple[Rows, ...]:
        raise AssertionError("more than one row was to be dealt")

    async def main() -> None:
        lane = Lane(max_queue_rows=100, cores=2, metrics=Metrics())
        load = Load(1, 1.0, run_us=run_us, row_us=0.0)
        queue = Queue(refused, wake=lane.wake, load=lambda _: load, cores=2, run_single=run)
        replies = [queue.submit(np.array([[number]])) for number in range(5)]
        for _ in range(at_once):
            assert await asyncio.to_thread(begun.acquire, timeout=20)
        assert not await asyncio.to_thread(begun.acquire, timeout=0.05)
        gate.set()
        for number, done in enumerate(await asyncio.gather(*replies)):
            assert done.outputs[0].tolist() == [[number]]
        lane.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_run_of_all_cores_waits_until_those_ahead_are_over() -> None:
    """Three runs of one core go on, one more than there are cores; the wide one begins when none of them does."""
    three, running, seen = threading.Barrier(3), set[int](), []

    def single(rows: Rows) -> tuple[Rows, ...]:
        running.add(number := int(rows[0, 0]))
        three.wait(20)
        running.discard(number)
        return (rows,)

    def wide(rows: Rows) -> tuple[Rows, ...]:
        seen.append(set(running))
        return (rows,)

    async def main() -> None:
        lane = Lane(max_queue_rows=100, cores=2, metrics=Metrics())
        narrow = Queue(single, wake=lane.wake, load=at_most(1), cores=1)
        broad = Queue(wide, wake=lane.wake, load=at_most(1), cores=2)
        replies = [narrow.submit(np.array([[number]])) for number in range(3)]
        await turn()
        await asyncio.gather(*replies, broad.submit(np.array([[3]])))
        lane.close()

    asyncio.run(asyncio.wait_for(main(), 30))
    assert seen == [set()]


@pytest.mark.parametrize(
    ("busy", "rows", "at_once"),
    [(0, 4, 2), (0, 9, 2), (0, 3, 1), (1, 9, 1)],
    ids=["the other is idle", "more rows", "fewer rows than a run takes", "the other is busy"],
)
def test_as_many_rows_as_a_run_takes_also_get_the_core_that_another_process_leaves_idle(
    busy: int, rows: int, at_once: int
) -> None:
    """Two processes share two cores; the cells of the other one say how many it has."""
    memory = tally.shared(2)
    Metrics(tally=Tally(memory, place=1)).busy_cores.set(busy)
    gate, begun = threading.Event(), threading.Semaphore(0)

    def run(rows: Rows) -> tuple[Rows, ...]:
        begun.release()
        assert gate.wait(20)
        return (rows,)

    async def main() -> None:
        metrics = Metrics(tally=Tally(memory, place=0))
        lane = Lane(max_queue_rows=100, cores=1, machine_cores=2, metrics=metrics)
        queue = Queue(run, wake=lane.wake, load=at_most(4))
        replies = [queue.submit(rows_of(0, 4)), queue.submit(rows_of(1, rows))]
        for _ in range(at_once):
            assert await asyncio.to_thread(begun.acquire, timeout=20)
        assert not await asyncio.to_thread(begun.acquire, timeout=0.05)
        assert metrics.busy_cores.total() == busy + at_once
        gate.set()
        for job, (reply, count) in enumerate(zip(replies, (4, rows), strict=True)):
            np.testing.assert_array_equal((await reply).outputs[0], rows_of(job, count))
        assert metrics.busy_cores.total() == busy
        lane.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_run_that_costs_next_to_nothing_is_done_on_the_event_loop() -> None:
    threads = []

    def run(rows: Rows) -> tuple[Rows, ...]:
        threads.append(threading.current_thread())
        return (rows,)

    def load(_row_shape: tuple[int, ...]) -> Load:
        return Load(16, 1.0, run_us=LOOP_BUDGET_US - 8, row_us=2.0)

    async def main() -> None:
        lane = Lane(max_queue_rows=100, cores=2, metrics=Metrics())
        queue = Queue(run, wake=lane.wake, load=load)
        await queue.submit(np.zeros((4, 1)))
        await queue.submit(np.zeros((5, 1)))
        lane.close()

    asyncio.run(main())
    assert threads[0] is threading.main_thread()
    assert threads[1] is not threading.main_thread()


def test_a_run_on_the_event_loop_that_fails_is_told_to_its_callers_alone() -> None:
    engine = Engine()

    async def main() -> None:
        lane = Lane(max_queue_rows=100, metrics=Metrics())
        queue = Queue(engine.run, wake=lane.wake, load=lambda _row_shape: Load(2, 1.0, run_us=0.0, row_us=0.0))
        engine.failing = True
        with pytest.raises(RuntimeError, match="the engine failed"):
            await queue.submit(np.zeros((2, 1)))
        engine.failing = False
        assert_own(await queue.submit(rows_of(1, 2)), rows_of(1, 2))
        lane.close()

    asyncio.run(main())


def test_the_loop_has_its_turn_between_runs_that_it_does_itself() -> None:
    events = []

    def run(rows: Rows) -> tuple[Rows, ...]:
        events.append("run")
        return (rows,)

    async def main() -> None:
        lane = Lane(max_queue_rows=100, metrics=Metrics())
        queue = Queue(run, wake=lane.wake, load=lambda _row_shape: Load(1, 1.0, run_us=0.0, row_us=0.0))
        reply = queue.submit(np.zeros((3, 1)))
        while not reply.done():
            await asyncio.sleep(0)
            events.append("turn")
        lane.close()

    asyncio.run(main())
    assert [event for event, before in zip(events, [None, *events], strict=False) if event != before].count("run") == 3


# Rows of several shapes, and several inputs

widths = st.sampled_from([1, 2, 3])
mixed = st.lists(st.tuples(st.integers(1, 20), widths), min_size=1, max_size=12)


def by_width(budget: int) -> Callable[[tuple[int, ...]], Load]:
    """The load of a graph that runs so many numbers at a time, and one row in any case."""
    return lambda row_shape: Load(max(1, budget // row_shape[0]), float(row_shape[0]), run_us=LONG_US, row_us=0.0)


@settings(max_examples=100)
@given(jobs=mixed, budget=st.integers(1, 24))
def test_callers_get_their_own_rows_at_any_mix_of_shapes_and_a_budget_bounds_each_run(
    jobs: list[tuple[int, int]], budget: int
) -> None:
    async def scenario(lane: Lane, engine: Engine) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=by_width(budget))
        asked = [rows_of(job, count, width=width) for job, (count, width) in enumerate(jobs)]
        replies = await asyncio.gather(*(queue.submit(rows) for rows in asked))
        for reply, rows in zip(replies, asked, strict=True):
            assert_own(reply, rows)

    engine = on_a_lane(scenario)
    assert all(batch.size <= budget or len(batch) == 1 for batch in engine.batches)
    assert sum(map(len, engine.batches)) == sum(count for count, _ in jobs)


@settings(max_examples=50)
@given(jobs=mixed, limit=most)
def test_the_rows_of_two_inputs_stay_together(jobs: list[tuple[int, int]], limit: int) -> None:
    """The first input has rows of one shape here, the second of several: both must be alike to share a batch."""

    async def scenario(lane: Lane, engine: Engine) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=at_most(limit))
        asked = [(rows_of(job, count), rows_of(job, count, width=width)) for job, (count, width) in enumerate(jobs)]
        replies = await asyncio.gather(*(queue.submit(*inputs) for inputs in asked))
        for reply, inputs in zip(replies, asked, strict=True):
            assert_own(reply, *inputs)

    assert max(map(len, on_a_lane(scenario).batches)) <= limit


def test_a_run_holds_rows_of_one_shape_as_many_as_wait() -> None:
    async def scenario(lane: Lane, engine: Engine) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=at_most(16))
        async with engine.held(queue):
            shapes = enumerate([1, 2, 1, 3, 2, 1])
            replies = [queue.submit(rows_of(job, 1, width=width)) for job, width in shapes]
            await turn()
        assert [(await reply).batch_rows for reply in replies] == [3, 2, 3, 1, 2, 3]

    assert [batch.shape for batch in on_a_lane(scenario).behind] == [(3, 1), (2, 2), (1, 3)]


@settings(max_examples=50)
@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=15), limit=st.integers(2, 16))
def test_a_lone_row_of_a_rare_shape_is_in_the_second_batch_while_jobs_are_fewer_than_its_rows(
    counts: list[int], limit: int
) -> None:
    counts = counts[:limit]
    lone = len(counts)

    async def scenario(lane: Lane, engine: Engine) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=at_most(limit))
        async with engine.held(queue):
            replies = [queue.submit(rows) for rows in jobs_of(counts)]
            replies.append(queue.submit(rows_of(lone, 1, width=2)))
            await turn()
        await asyncio.gather(*replies)

    assert on_a_lane(scenario).behind[1].tolist() == [[1000 * lone] * 2]


def test_a_rare_shape_is_not_starved_by_a_crowd_that_keeps_coming() -> None:
    """A caller of the common shape is back as soon as it is answered, eight of them for batches of four."""

    async def scenario(lane: Lane, engine: Engine) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=at_most(4))
        answered = asyncio.Event()

        async def crowd(job: int) -> None:
            while not answered.is_set():
                await queue.submit(rows_of(job, 3))

        async with engine.held(queue):
            callers = [asyncio.create_task(crowd(job)) for job in range(8)]
            await turn()
            lone = queue.submit(rows_of(9, 1, width=2))
        await lone
        answered.set()
        await asyncio.gather(*callers)

    # Two batches serve all eight that were there before; they have rows left then, but stand behind.
    assert [batch.shape[1] for batch in on_a_lane(scenario).behind[:3]] == [1, 1, 2]


def test_long_jobs_of_two_shapes_take_turns() -> None:
    async def scenario(lane: Lane, engine: Engine) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=at_most(4))
        async with engine.held(queue):
            replies = [queue.submit(rows_of(job, 12, width=job + 1)) for job in range(2)]
            await turn()
        await asyncio.gather(*replies)

    assert [batch.shape for batch in on_a_lane(scenario).behind] == [(4, 1), (4, 2)] * 3


def test_jobs_of_rows_too_large_to_share_a_run_take_turns() -> None:
    async def scenario(lane: Lane, engine: Engine) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=at_most(1))
        async with engine.held(queue):
            replies = [queue.submit(rows) for rows in jobs_of([2, 2, 1])]
            await turn()
        await asyncio.gather(*replies)

    assert np.concatenate(on_a_lane(scenario).behind).ravel().tolist() == [0, 1000, 2000, 1, 1001]


def test_a_run_that_fails_leaves_the_jobs_of_other_shapes_alone() -> None:
    async def scenario(lane: Lane, engine: Engine) -> None:
        def run(rows: Rows) -> tuple[Rows, ...]:
            if rows.shape[1] == 2:
                raise RuntimeError("the engine failed")
            return engine.run(rows)

        queue = Queue(run, wake=lane.wake, load=at_most(4))
        replies = [queue.submit(rows_of(job, 1, width=width)) for job, width in enumerate([1, 2, 1])]
        first, failed, last = await asyncio.gather(*replies, return_exceptions=True)
        assert str(failed) == "the engine failed"
        for job, done in ((0, first), (2, last)):
            assert isinstance(done, Done)
            assert_own(done, rows_of(job, 1))

    on_a_lane(scenario)


# Admission


def test_rows_are_admitted_up_to_the_bound_and_refused_beyond() -> None:
    lane = Lane(max_queue_rows=10, metrics=Metrics())
    refused = pytest.raises(QueueFull, match="queue: 10 rows wait, 1 more exceed 10; try again in 1 s")
    with lane.admit(6), lane.admit(4), refused, lane.admit(1):
        pass
    with lane.admit(10):
        pass
    lane.close()


@pytest.mark.parametrize("rows", [1, 5, 11])
def test_the_rule_is_the_same_for_one_row_and_for_many(rows: int) -> None:
    lane = Lane(max_queue_rows=10, metrics=Metrics())
    with lane.admit(10), pytest.raises(QueueFull), lane.admit(rows):
        pass
    lane.close()


def test_a_request_alone_is_admitted_whole_whatever_its_size() -> None:
    lane = Lane(max_queue_rows=10, metrics=Metrics())
    with lane.admit(100), pytest.raises(QueueFull), lane.admit(1):
        pass
    lane.close()


def test_room_comes_back_when_a_request_fails() -> None:
    lane = Lane(max_queue_rows=10, metrics=Metrics())
    with pytest.raises(ZeroDivisionError), lane.admit(10):
        raise ZeroDivisionError
    with lane.admit(10):
        pass
    lane.close()


def test_retry_after_is_the_time_that_the_waiting_rows_will_take() -> None:
    """The rate is given here, as if measured: before 400 rows that wait 50 rows/s, and a little less."""
    lane = Lane(max_queue_rows=400, metrics=Metrics())
    for rows_per_s, wait_s in ((50.0, 8), (49.0, 9)):
        lane._rows_per_s = rows_per_s  # noqa: SLF001
        with lane.admit(400), pytest.raises(QueueFull) as refused, lane.admit(1):
            pass
        assert refused.value.headers == {"Retry-After": str(wait_s)}
    lane.close()


def test_retry_after_is_a_second_at_least_and_before_anything_was_measured() -> None:
    lane = Lane(max_queue_rows=400, metrics=Metrics())
    with lane.admit(400), pytest.raises(QueueFull) as unmeasured, lane.admit(1):
        pass
    lane._rows_per_s = 1e9  # noqa: SLF001
    with lane.admit(400), pytest.raises(QueueFull) as fast, lane.admit(1):
        pass
    assert unmeasured.value.headers == fast.value.headers == {"Retry-After": "1"}
    lane.close()


def test_the_rate_is_measured_from_the_runs() -> None:
    async def scenario(lane: Lane, engine: Engine) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=at_most(4))
        await queue.submit(np.zeros((12, 1)))
        assert lane._rows_per_s > 0  # noqa: SLF001

    on_a_lane(scenario)


@pytest.mark.parametrize(("cores", "of_a_run", "wait_s"), [(1, 1, 10), (2, 1, 5), (2, 2, 10)])
def test_the_rate_is_that_of_engine_rows_on_all_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, of_a_run: int, wait_s: int
) -> None:
    """A second passes each time that the clock is read, so every run takes one: ten engine rows a second and core."""
    clock = itertools.count()
    monkeypatch.setattr(lanes, "perf_counter", lambda: float(next(clock)))

    async def main() -> None:
        lane = Lane(max_queue_rows=100, cores=cores, metrics=Metrics())
        load = Load(8, 2.5, run_us=LONG_US, row_us=0.0)
        queue = Queue(lambda rows: (rows,), wake=lane.wake, load=lambda _row_shape: load, cores=of_a_run)
        assert (await queue.submit(np.zeros((4, 1)))).run_s == 1
        with lane.admit(100), pytest.raises(QueueFull) as refused, lane.admit(1):
            pass
        assert refused.value.headers == {"Retry-After": str(wait_s)}
        lane.close()

    asyncio.run(main())
