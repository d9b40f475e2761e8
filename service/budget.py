"""What the event loop may compute itself: work of a known small cost; everything else goes to a thread."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from math import inf
from typing import ParamSpec, TypeVar

from service.deadline import Deadline
from service.machine import available_cores
from service.room import Room

P = ParamSpec("P")
T = TypeVar("T")

# Threads of its own: however many pictures are to be read and written, metrics and reloads do not wait for them.
_threads = ThreadPoolExecutor(available_cores() + 2, thread_name_prefix="codec")

# Work that states to be long has others, so that pictures are read while long animations are written.
_long_threads = ThreadPoolExecutor(available_cores(), thread_name_prefix="long")
_LONG_US = 100_000.0

# A hop to a thread and back costs as much as the work of a small request, which is therefore done at once.
LOOP_BUDGET_US = 200.0

# Where there is but one core, a run in a thread takes turns with the event loop, and two changes of threads more. One
# of up to so long is done at once too: callers in its batch all wait for it, and others hardly notice.
_LONE_CORE_BUDGET_US = 1_000.0


def loop_budget_us(cores: int) -> float:
    """What a run of a graph may take on the event loop of a process with so many cores.

    Units:  microseconds
    """
    return LOOP_BUDGET_US if cores > 1 else _LONE_CORE_BUDGET_US


async def spend(cost_us: float, deadline: Deadline, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `work`, run on the event loop where its cost fits the budget and in a thread otherwise. At the
    deadline work that waits for a thread is given up; what a thread has begun it ends, and nobody takes it.

    Units:   cost_us microseconds, as each codec states it for its input
    Raises:  DeadlinePassed
    """
    if cost_us <= LOOP_BUDGET_US:
        return work(*args, **kwargs)
    if deadline.left_s() <= 0:
        raise deadline.passed()
    return await _in_time(deadline, asyncio.wrap_future(_pool(cost_us).submit(partial(work, *args, **kwargs))))


async def spend_with_room(
    room: Room,
    weight: int,
    deadline: Deadline,
    work: Callable[[], T],
    *,
    cost_us: float = inf,
    require_caller: Callable[[], Awaitable[None]],
) -> T:
    """The result of work that takes much memory, run in a thread when there is room for it, if somebody still waits
    then. What a thread has begun keeps its room until it ends, also where nobody waits for it any more.

    Units:   cost_us microseconds, as for `spend`
    Raises:  DeadlinePassed, and what `require_caller` raises
    """
    loop = asyncio.get_running_loop()
    weight = await _in_time(deadline, asyncio.ensure_future(room.take(weight)))
    try:
        await require_caller()
    except BaseException:
        room.give(weight)
        raise

    def give_back(_done: object) -> None:
        with suppress(RuntimeError):  # a loop that has ended
            loop.call_soon_threadsafe(room.give, weight)

    begun = _pool(cost_us).submit(work)
    begun.add_done_callback(give_back)
    return await _in_time(deadline, asyncio.wrap_future(begun))


def _pool(cost_us: float) -> ThreadPoolExecutor:
    return _long_threads if _LONG_US < cost_us < inf else _threads


async def _in_time(deadline: Deadline, done: "asyncio.Future[T]") -> T:
    """What a future gives, unless the deadline comes first: then it is cancelled.

    Raises:  DeadlinePassed
    """
    loop = asyncio.get_running_loop()
    is_late = False

    def give_up() -> None:
        nonlocal is_late
        is_late = True
        done.cancel()

    timer = loop.call_later(deadline.left_s(), give_up)
    try:
        return await done
    except asyncio.CancelledError:
        if is_late:
            raise deadline.passed() from None
        raise
    finally:
        timer.cancel()


async def in_turns(pieces: Iterable[T]) -> tuple[T, ...]:
    """All pieces of a work that keeps the interpreter to itself, so that no thread would relieve the event loop of it:
    other requests have their turn between two.
    """
    made: list[T] = []
    for piece in pieces:
        if made:
            await asyncio.sleep(0)
        made.append(piece)
    return tuple(made)
