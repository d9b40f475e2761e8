"""What the event loop may compute itself: work of a known small cost; everything else goes to a thread."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# A hop to a thread and back costs as much as the work of a small request, which is therefore done at once.
LOOP_BUDGET_US = 200.0


async def spend(cost_us: float, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `work`, run on the event loop where its cost fits the budget and in a thread otherwise.

    Units:  cost_us microseconds, as each codec states it for its input
    """
    if cost_us <= LOOP_BUDGET_US:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)
