import asyncio
import threading
from collections.abc import Iterator

import pytest

from service.budget import LOOP_BUDGET_US, in_turns, spend


def test_work_within_the_budget_runs_on_the_event_loop_and_other_work_in_a_thread() -> None:
    async def threads() -> list[int]:
        return [await spend(cost, threading.get_ident) for cost in (0, LOOP_BUDGET_US, LOOP_BUDGET_US + 1)]

    small, largest, larger = asyncio.run(threads())
    assert small == largest == threading.get_ident()
    assert larger != threading.get_ident()


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
