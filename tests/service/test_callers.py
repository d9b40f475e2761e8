"""Who is listened to while an answer takes its time, and that nothing of a request is kept once it is answered."""

import asyncio
import gc
import weakref
from time import perf_counter
from typing import Any

import pytest

from service import callers
from service.callers import CallerGone, Patience
from service.deadline import Deadline
from service.errors import DeadlinePassed


class Caller:
    """One who leaves when told to, and counts how often it is listened to."""

    def __init__(self) -> None:
        self.left, self.asked = asyncio.Event(), asyncio.Event()
        self.heard = 0

    async def receive(self) -> dict[str, Any]:
        self.heard += 1
        self.asked.set()
        await self.left.wait()
        return {"type": "http.disconnect"}


def deadline(timeout_ms: int = 60_000) -> Deadline:
    return Deadline(perf_counter(), timeout_ms=timeout_ms)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "PATIENCE_S", 0.01)


def test_those_who_wait_long_are_listened_to_and_those_who_do_not_are_not() -> None:
    async def main() -> None:
        patience, quick, slow, late = Patience(), Caller(), Caller(), Caller()
        loop = asyncio.get_running_loop()
        replies: list[asyncio.Future[Any]] = [loop.create_future() for _ in range(3)]

        def wait(place: int, caller: Caller) -> asyncio.Task[Any]:
            return asyncio.create_task(patience.attended(replies[place], caller.receive, deadline=deadline()))

        first, second = wait(0, quick), wait(1, slow)
        await asyncio.sleep(0)
        replies[0].set_result("quick")
        assert await first == "quick"
        await asyncio.wait_for(slow.asked.wait(), 20)
        third = wait(2, late)  # its turn comes by a timer that begins anew
        await asyncio.wait_for(late.asked.wait(), 20)
        assert (quick.heard, slow.heard, late.heard) == (0, 1, 1)
        slow.left.set()
        with pytest.raises(CallerGone):
            await second
        assert replies[1].cancelled()
        replies[2].set_result("late")
        assert await third == "late"

    asyncio.run(main())


@pytest.mark.parametrize("timeout_ms", [1, 40], ids=["before anyone listens", "while somebody listens"])
def test_a_reply_that_does_not_come_in_time_is_taken_back(timeout_ms: int) -> None:
    async def main() -> None:
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        with pytest.raises(DeadlinePassed, match=f"deadline: {timeout_ms} ms passed"):
            await Patience().attended(reply, Caller().receive, deadline=deadline(timeout_ms))
        assert reply.cancelled()

    asyncio.run(main())


def test_a_deadline_that_comes_before_anyone_looks_needs_no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "PATIENCE_S", 3_600.0)

    async def main() -> None:
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        with pytest.raises(DeadlinePassed):
            async with asyncio.timeout(20):
                await Patience().attended(reply, Caller().receive, deadline=deadline(1))

    asyncio.run(main())


def test_a_task_that_is_cancelled_by_others_says_so() -> None:
    async def main() -> None:
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        waiting = asyncio.create_task(Patience().attended(reply, Caller().receive, deadline=deadline()))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())


def test_nothing_of_an_answered_request_is_kept_until_the_next_look() -> None:
    class Result:
        pass

    async def main() -> None:
        patience, caller, result = Patience(), Caller(), Result()
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        reply.set_result(result)
        kept = [weakref.ref(result), weakref.ref(caller)]
        assert await patience.attended(reply, caller.receive, deadline=deadline()) is result
        del reply, result, caller
        gc.collect()
        assert [each() for each in kept] == [None, None]

    asyncio.run(main())
