"""Room for so much at a time."""

import asyncio

import pytest

from service.room import Room


def test_who_finds_no_room_waits_and_comes_in_order() -> None:
    async def scenario() -> list[str]:
        room, log = Room(10), list[str]()

        async def work(name: str, weight: int, gate: asyncio.Event) -> None:
            taken = await room.take(weight)
            log.append(name)
            await gate.wait()
            room.give(taken)

        gates = {name: asyncio.Event() for name in "abcde"}
        tasks = [
            asyncio.create_task(work(name, weight, gates[name]))
            for name, weight in (("a", 6), ("b", 6), ("c", 1), ("d", 99), ("e", 1))
        ]
        for name in "abcde":
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            log.append(f"end {name}")
            gates[name].set()
        await asyncio.gather(*tasks)
        return log

    # c would have room beside a, but b came before it; d, of more than there is, waits for all of it.
    assert asyncio.run(asyncio.wait_for(scenario(), 5)) == [
        "a",
        "end a",
        "b",
        "c",
        "end b",
        "end c",
        "d",
        "end d",
        "e",
        "end e",
    ]


def test_who_gives_up_takes_no_room_and_lets_those_behind_in() -> None:
    async def scenario() -> None:
        room = Room(10)
        held = await room.take(6)
        large, small = (asyncio.create_task(room.take(weight)) for weight in (10, 4))
        await asyncio.sleep(0)
        assert not small.done()
        large.cancel()
        with pytest.raises(asyncio.CancelledError):
            await large
        assert await small == 4
        room.give(held)
        room.give(4)
        assert await room.take(10) == 10

    asyncio.run(asyncio.wait_for(scenario(), 5))


@pytest.mark.parametrize("comes_first", [True, False])
def test_a_turn_that_comes_as_its_owner_gives_up_goes_to_the_next(comes_first: bool) -> None:
    async def scenario() -> None:
        room = Room(10)
        held = await room.take(10)
        first, second = (asyncio.create_task(room.take(10)) for _ in range(2))
        await asyncio.sleep(0)
        happens = [lambda: room.give(held), first.cancel]
        for happening in happens if comes_first else reversed(happens):
            happening()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await second == 10

    asyncio.run(asyncio.wait_for(scenario(), 5))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_several_may_give_up_at_once(order: tuple[int, int]) -> None:
    async def scenario() -> None:
        room = Room(10)
        held = await room.take(6)
        waiting = [asyncio.create_task(room.take(weight)) for weight in (10, 4)]
        await asyncio.sleep(0)
        for index in order:
            waiting[index].cancel()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 2
        room.give(held)
        assert await room.take(10) == 10

    asyncio.run(asyncio.wait_for(scenario(), 5))
