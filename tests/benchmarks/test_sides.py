"""A side of a comparison is made and called in a process of its own."""

import os
from collections.abc import Callable

import pytest

from benchmarks.sides import side


def adding(start: int, *, step: int) -> Callable[[int], tuple[int, int]]:
    """Adds what it is given, times step, to what it has; tells where it runs."""
    total = [start]

    def turn(number: int) -> tuple[int, int]:
        total[0] += step * number
        return os.getpid(), total[0]

    return turn


def broken() -> Callable[[], None]:
    raise ValueError("this side cannot be made")


@pytest.mark.parametrize("keeps_memory", [True, False])
def test_each_side_has_a_process_and_a_state_of_its_own(keeps_memory: bool) -> None:
    with (
        side(adding, 1, step=10, keeps_memory=keeps_memory) as tens,
        side(adding, 0, step=1, keeps_memory=keeps_memory) as ones,
    ):
        found = [tens(1), ones(1), tens(2), ones(2)]
    assert [total for _, total in found] == [11, 1, 31, 3]
    assert found[0][0] == found[2][0]
    assert len({pid for pid, _ in found} | {os.getpid()}) == 3


def test_a_side_that_cannot_be_made_ends_the_comparison() -> None:
    with pytest.raises(EOFError), side(broken, keeps_memory=False):
        pass
