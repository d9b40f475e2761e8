"""Numbers of several processes: each writes its own, all read the sum."""

from multiprocessing import get_context

import pytest

from service.observation.tally import CELLS, ENDS, LAST_REFUSED, LIVE_CELLS, Memory, Tally, beats, bury, shared


def count(memory: Memory, place: int) -> None:
    tally = Tally(memory, place=place)
    live, lasting = tally.reserve_live(), tally.reserve(2)
    tally.cells[live] += 10
    for _ in range(1000):
        tally.cells[lasting + 1] += place + 1


def test_processes_count_in_one_memory_and_each_reads_the_sum_of_all() -> None:
    memory = shared(3)
    processes = [get_context("spawn").Process(target=count, args=(memory, place)) for place in range(2)]
    for process in processes:
        process.start()
    count(memory, 2)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    tally = Tally(memory)
    live, lasting = tally.reserve_live(), tally.reserve(2)
    sums = tally.sums()
    assert (sums[live], sums[lasting], sums[lasting + 1]) == (30, 0, 6000)
    assert tally.each(live) == [10, 10, 10]
    assert tally.each(lasting + 1) == [1000, 2000, 3000]


def test_what_was_true_of_a_process_ends_with_it_and_what_it_counted_does_not() -> None:
    memory = shared(2)
    count(memory, 0)
    count(memory, 1)
    bury(memory, 1)
    tally = Tally(memory)
    live, lasting = tally.reserve_live(), tally.reserve(2)
    assert tally.each(live) == [10, 0]
    assert tally.each(lasting + 1) == [1000, 2000]
    assert tally.each(ENDS) == [0, 1], "its end is counted"


def test_how_often_a_process_came_round_is_read_by_its_parent_and_ends_with_it() -> None:
    memory = shared(2)
    tally = Tally(memory, place=1)
    for _ in range(3):
        tally.beat()
    assert [beats(memory, place) for place in (0, 1)] == [0, 3]
    bury(memory, 1)
    assert beats(memory, 1) == 0


def test_a_process_by_itself_needs_no_shared_memory() -> None:
    one, other = Tally(), Tally()
    cell = one.reserve(1)
    one.cells[cell] += 1
    assert one.sums()[cell] == 1
    assert other.sums() == [0] * (LAST_REFUSED + 1)


def test_more_cells_than_there_are_is_an_error_that_says_so() -> None:
    tally = Tally()
    with pytest.raises(MemoryError, match=f"tally: {CELLS + 1} cells are wanted, {CELLS} are there"):
        tally.reserve(CELLS - LAST_REFUSED)
    tally = Tally()
    for _ in range(LIVE_CELLS - 1):  # beside that of the beats
        tally.reserve_live()
    with pytest.raises(MemoryError, match=f"tally: {LIVE_CELLS + 1} live cells are wanted, {LIVE_CELLS} are there"):
        tally.reserve_live()
