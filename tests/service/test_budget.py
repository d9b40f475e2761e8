import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import inf
from time import perf_counter

import pytest

from service import budget
from service.budget import LOOP_BUDGET_US, in_turns, spend, spend_with_room
from service.callers import CallerGone
from service.deadline import Deadline
from service.errors import DeadlinePassed
from service.room import Room

LATER = Deadline(perf_counter(), timeout_ms=10**9)


def test_work_within_the_budget_runs_on_the_event_loop_and_other_work_in_a_thread() -> None:
    async def threads() -> list[int]:
        return [await spend(cost, LATER, threading.get_ident) for cost in (0, LOOP_BUDGET_US, LOOP_BUDGET_US + 1)]

    small, largest, larger = asyncio.run(threads())
    assert small == largest == threading.get_ident()
    assert larger != threading.get_ident()


def test_at_the_deadline_work_that_runs_or_waits_is_given_up_and_what_waits_never_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, begun = threading.Event(), []

    def work(name: str) -> str:
        begun.append(name)
        assert gate.wait(20)
        return name

    async def scenario(executor: ThreadPoolExecutor) -> None:
        monkeypatch.setattr(budget, "_threads", executor)
        soon = Deadline(perf_counter(), timeout_ms=1_000)
        ends = await asyncio.gather(
            *(spend(inf, soon, work, name) for name in ("runs", "waits")), return_exceptions=True
        )
        assert [type(end) for end in ends] == [DeadlinePassed, DeadlinePassed]
        with pytest.raises(DeadlinePassed):
            await spend(inf, soon, work, "late")
        gate.set()
        assert await spend(inf, LATER, work, "next") == "next"
        assert begun == ["runs", "next"]

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(scenario(executor))


def test_a_caller_who_is_cancelled_is_not_told_of_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    async def scenario() -> None:
        task = asyncio.create_task(spend(1e9, LATER, gate.wait, 20))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()

    asyncio.run(scenario())


def test_room_that_came_when_nobody_waited_any_more_goes_to_the_next() -> None:
    async def gone() -> None:
        raise CallerGone

    async def there() -> None:
        pass

    async def scenario() -> str:
        room = Room(10)
        with pytest.raises(CallerGone):
            await spend_with_room(room, 10, LATER, lambda: "never", require_caller=gone)
        next_one = spend_with_room(room, 10, LATER, lambda: "done", require_caller=there)
        return await asyncio.wait_for(next_one, 20)

    assert asyncio.run(scenario()) == "done"


def test_pieces_of_work_are_done_in_order_with_turns_for_others_in_between() -> None:
    log: list[str] = []

    def pieces() -> Iterator[int]:
        for number in range(4):
            log.append(f"piece {number}")
            yield number

    async def other() -> None:
        for _ in range(3):
            log.append("other")
            await asyncio.sleep(0)

    async def both() -> tuple[int, ...]:
        made, _ = await asyncio.gather(in_turns(pieces()), other())
        return made

    assert asyncio.run(both()) == (0, 1, 2, 3)
    assert log == ["piece 0", "piece 1", "other", "piece 2", "other", "piece 3", "other"]


def test_a_single_piece_of_work_gives_up_no_turn() -> None:
    with pytest.raises(StopIteration) as done:
        in_turns(["piece"]).send(None)
    assert done.value.value == ("piece",)
