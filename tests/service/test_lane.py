"""What follows when a run fails, does not end, or is for nobody: on a real event loop and real engine threads."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service import lane as lanes
from service.batcher import Batch, Load, Queue
from service.errors import OutOfMemory, QueueFull
from service.lane import Lane
from service.observation.metrics import Metrics
from service.stop import Stop

Rows = NDArray[Any]


def load(limit: int = 8, *, run_us: float = 1e4) -> Callable[[tuple[int, ...]], Load]:
    return lambda _row_shape: Load(limit, 1.0, run_us=run_us, row_us=0.0)


def on_a_lane(scenario: Callable[[Lane], Coroutine[Any, Any, None]], *, cores: int = 1) -> None:
    async def main() -> None:
        lane = Lane(max_queue_rows=1000, cores=cores, metrics=Metrics())
        await asyncio.wait_for(scenario(lane), 30)
        lane.close()

    asyncio.run(main())


def job(number: int, rows: int = 1) -> Rows:
    return np.full((rows, 1), number)


class Failing:
    """Fails whenever a row of `poison` is in a batch, or for so many runs; writes down the numbers of every batch."""

    def __init__(self, *poison: int, times: int = 0, error: Exception | None = None) -> None:
        self.batches: list[list[int]] = []
        self._poison = set(poison)
        self._times = times
        self._error = error or RuntimeError("the engine failed")

    def run(self, rows: Rows) -> tuple[Rows, ...]:
        numbers = rows[:, 0].tolist()
        self.batches.append(numbers)
        self._times -= 1
        if self._times >= 0 or self._poison & set(numbers):
            raise self._error
        return (rows * 2,)


@pytest.mark.parametrize("run_us", [0.0, 1e4], ids=["on the loop", "in a thread"])
def test_only_the_job_that_fails_alone_is_told_so(run_us: float) -> None:
    engine = Failing(3)

    async def scenario(lane: Lane) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=load(run_us=run_us))
        replies = [queue.submit(job(number)) for number in range(6)]
        done = await asyncio.gather(*replies, return_exceptions=True)
        assert [str(answer) for answer in done if isinstance(answer, Exception)] == ["the engine failed"]
        assert isinstance(done[3], RuntimeError)
        for number, answer in enumerate(done):
            if number != 3:
                assert not isinstance(answer, BaseException)
                assert answer.outputs[0].tolist() == [[2 * number]]

    on_a_lane(scenario)
    assert engine.batches == [[0, 1, 2, 3, 4, 5], [0], [1], [2], [3], [4], [5]]


@pytest.mark.parametrize(
    ("cores", "run_us", "is_here"), [(1, 1_000.0, True), (1, 1_001.0, False), (2, 200.0, True), (2, 201.0, False)]
)
def test_a_process_of_one_core_does_longer_runs_on_its_event_loop(cores: int, run_us: float, is_here: bool) -> None:
    threads = []

    def run(rows: Rows) -> tuple[Rows, ...]:
        threads.append(threading.current_thread())
        return (rows,)

    async def scenario(lane: Lane) -> None:
        await Queue(run, wake=lane.wake, load=load(run_us=run_us)).submit(job(1))

    on_a_lane(scenario, cores=cores)
    assert (threads == [threading.main_thread()]) == is_here


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a policy for batch work")
def test_threads_that_compute_do_not_interrupt_the_event_loop() -> None:
    policies = []

    def run(rows: Rows) -> tuple[Rows, ...]:
        policies.append(os.sched_getscheduler(0))
        return (rows,)

    async def scenario(lane: Lane) -> None:
        await Queue(run, wake=lane.wake, load=load()).submit(job(1))
        assert os.sched_getscheduler(0) == os.SCHED_OTHER

    on_a_lane(scenario)
    assert policies == [os.SCHED_BATCH]


def test_a_sandbox_that_forbids_the_policy_changes_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_arguments: object) -> None:
        raise PermissionError("operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", forbidden, raising=False)
    engine = Failing()

    async def scenario(lane: Lane) -> None:
        done = await Queue(engine.run, wake=lane.wake, load=load()).submit(job(1))
        assert done.outputs[0].tolist() == [[2]]

    on_a_lane(scenario)


def test_a_batch_that_failed_once_is_answered_all_the_same() -> None:
    engine = Failing(times=1)

    async def scenario(lane: Lane) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=load())
        done = await asyncio.gather(*(queue.submit(job(number, rows=2)) for number in range(3)))
        assert [answer.outputs[0][:, 0].tolist() for answer in done] == [[0, 0], [2, 2], [4, 4]]

    on_a_lane(scenario)


def test_jobs_that_are_tried_apart_count_what_is_theirs() -> None:
    """Else each would count as the whole batch, and the queue would seem to empty that many times as fast."""

    async def scenario() -> None:
        replies = [asyncio.get_running_loop().create_future() for _ in range(3)]
        jobs: Any = tuple(SimpleNamespace(reply=reply) for reply in replies)
        places = slice(0, 1), slice(2, 5), slice(0, 2)
        alone = Batch(Failing().run, 1, jobs, places, engine_rows=12.0, run_us=600.0).apart()
        assert [batch.places for batch in alone] == [(place,) for place in places]
        assert [batch.engine_rows for batch in alone] == [2, 6, 4]
        assert [batch.run_us for batch in alone] == [100, 300, 200]

    asyncio.run(scenario())


def test_a_job_that_was_alone_is_not_tried_again() -> None:
    engine = Failing(times=1)

    async def scenario(lane: Lane) -> None:
        queue = Queue(engine.run, wake=lane.wake, load=load())
        with pytest.raises(RuntimeError, match="the engine failed"):
            await queue.submit(job(1))
        assert (await queue.submit(job(2))).outputs[0].tolist() == [[4]]

    on_a_lane(scenario)
    assert engine.batches == [[1], [2]]


def test_who_has_left_meanwhile_is_not_tried_again() -> None:
    engine = Failing(0)
    left: list[asyncio.Future[Any]] = []

    async def scenario(lane: Lane) -> None:
        loop = asyncio.get_running_loop()
        cancelled = threading.Event()

        def cancel() -> None:
            left[0].cancel()
            cancelled.set()

        def run(rows: Rows) -> tuple[Rows, ...]:
            if not engine.batches:
                loop.call_soon_threadsafe(cancel)
                assert cancelled.wait(20)
            return engine.run(rows)

        queue = Queue(run, wake=lane.wake, load=load())
        replies = [queue.submit(job(number)) for number in range(3)]
        left.append(replies[1])
        await asyncio.gather(*replies, return_exceptions=True)

    on_a_lane(scenario)
    assert engine.batches == [[0, 1, 2], [0], [2]]


def test_a_larger_batch_that_fails_later_lets_none_grow() -> None:
    async def scenario(lane: Lane) -> None:
        queue = Queue(Failing().run, wake=lane.wake, load=load(64))
        queue.shrink(4)
        queue.shrink(64)
        assert queue._cap == 2  # noqa: SLF001

    on_a_lane(scenario)


def test_out_of_memory_halves_the_batches_until_many_runs_went_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device holds two rows here; after three good runs batches may grow again."""
    monkeypatch.setattr("service.batcher._RUNS_TO_RECOVER", 3)
    sizes: list[int] = []
    room = [2]

    def run(rows: Rows) -> tuple[Rows, ...]:
        sizes.append(len(rows))
        if len(rows) > room[0]:
            raise OutOfMemory(f"no memory for {len(rows)} rows")
        return (rows,)

    async def scenario(lane: Lane) -> None:
        queue = Queue(run, wake=lane.wake, load=load(8))
        with pytest.raises(OutOfMemory, match="no memory for 8 rows"):
            await queue.submit(job(0, rows=8))
        with pytest.raises(OutOfMemory, match="no memory for 4 rows"):
            await queue.submit(job(0, rows=8))
        await queue.submit(job(0, rows=4))
        assert sizes == [8, 4, 2, 2]
        room[0] = 8
        sizes.clear()
        await queue.submit(job(0, rows=20))

    on_a_lane(scenario)
    # Each batch is formed before the one ahead of it is noted.
    assert sizes == [2, 2, 4, 4, 4, 4]


def test_a_device_out_of_memory_is_logged_with_its_own_words_as_long_as_runs_grow_smaller(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def run(_rows: Rows) -> tuple[Rows, ...]:
        raise OutOfMemory("encoder.onnx: no memory") from RuntimeError("BFCArena: 1024 bytes\nat line 7")

    async def scenario(lane: Lane) -> None:
        queue = Queue(run, wake=lane.wake, load=load(4))
        for _ in range(5):
            with pytest.raises(OutOfMemory):
                await queue.submit(job(0, rows=4))

    on_a_lane(scenario)
    said = "encoder.onnx: no memory (BFCArena: 1024 bytes); runs of at most {} follow"
    assert [record.message for record in caplog.records] == [said.format(2), said.format(1)]


def test_several_jobs_that_were_too_many_together_are_answered_one_by_one() -> None:
    def run(rows: Rows) -> tuple[Rows, ...]:
        if len(rows) > 2:
            raise OutOfMemory("no memory")
        return (rows,)

    async def scenario(lane: Lane) -> None:
        queue = Queue(run, wake=lane.wake, load=load(8))
        done = await asyncio.gather(*(queue.submit(job(number)) for number in range(6)))
        assert [int(answer.outputs[0][0, 0]) for answer in done] == list(range(6))

    on_a_lane(scenario)


def test_a_long_run_that_nobody_waits_for_is_ended() -> None:
    """The engine runs until it is told to stop, which it is once both callers have left, and not before."""
    asked, running = threading.Event(), threading.Event()

    def run(rows: Rows, *, stop: Stop) -> tuple[Rows, ...]:
        stop.by(asked.set)
        running.set()
        assert asked.wait(20)
        raise RuntimeError("stopped")

    async def scenario(lane: Lane) -> None:
        queue = Queue(run, wake=lane.wake, load=load(run_us=lanes._STOPPABLE_US))  # noqa: SLF001
        first, second = queue.submit(job(1)), queue.submit(job(2))
        await asyncio.to_thread(running.wait, 20)
        first.cancel()
        await asyncio.sleep(0.01)
        assert not asked.is_set()
        second.cancel()
        await asyncio.to_thread(asked.wait, 20)
        assert asked.is_set()

    on_a_lane(scenario)


def test_only_runs_that_somebody_waited_for_count_as_failed_and_a_good_one_clears_them() -> None:
    running, is_good = threading.Event(), [False]

    def run(rows: Rows, *, stop: Stop) -> tuple[Rows, ...]:
        if is_good[0]:
            return (rows,)
        running.set()
        told = threading.Event()
        stop.by(told.set)
        told.wait(0.05)
        raise RuntimeError("stopped, or failed by itself")

    def counted(lane: Lane) -> float:
        (sample,) = lane._metrics.failed_runs.family(lane._metrics._tally.sums(), since=0).samples  # noqa: SLF001
        return float(sample.value)

    async def scenario(lane: Lane) -> None:
        queue = Queue(run, wake=lane.wake, load=load(run_us=lanes._STOPPABLE_US))  # noqa: SLF001
        deserted = queue.submit(job(1))
        await asyncio.to_thread(running.wait, 20)
        deserted.cancel()
        for failed in (1, 2):
            with pytest.raises(RuntimeError):
                await queue.submit(job(2))
            assert queue.failed_runs == counted(lane) == failed
        is_good[0] = True
        await queue.submit(job(3))
        assert queue.failed_runs == 0

    on_a_lane(scenario)


def test_asking_to_stop_before_it_is_known_how_stops_at_once() -> None:
    stop, stopped = Stop(), []
    stop.ask()
    stop.by(lambda: stopped.append(1))
    assert stopped == [1]


def test_a_run_that_does_not_end_is_a_wedge_once_it_is_late_by_both_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands where the test puts it; the run is expected to take 2 s, so that 20 times that are 40 s."""
    now = [100.0]
    monkeypatch.setattr(lanes, "perf_counter", lambda: now[0])
    gate, running = threading.Event(), threading.Event()

    def run(rows: Rows, *, stop: Stop) -> tuple[Rows, ...]:
        running.set()
        assert gate.wait(20)
        return (rows,)

    async def scenario(lane: Lane) -> None:
        assert not lane.is_wedged(0)
        reply = Queue(run, wake=lane.wake, load=load(run_us=2e6)).submit(job(1))
        await asyncio.to_thread(running.wait, 20)
        assert not lane.is_wedged(30)
        now[0] = 139.0
        assert not lane.is_wedged(30)
        now[0] = 141.0
        assert lane.is_wedged(30)
        assert not lane.is_wedged(42)
        lane.forgive(5)
        assert not lane.is_wedged(30)
        now[0] = 146.0
        assert lane.is_wedged(30)
        gate.set()
        await reply
        assert not lane.is_wedged(0)

    on_a_lane(scenario)


def test_room_can_be_asked_for_without_taking_it() -> None:
    lane = Lane(max_queue_rows=10, metrics=Metrics())
    lane.require_room(1000)
    with lane.admit(8):
        lane.require_room(2)
        with pytest.raises(QueueFull, match="queue: 8 rows wait, 3 more exceed 10; try again in 1 s"):
            lane.require_room(3)
    lane.close()
