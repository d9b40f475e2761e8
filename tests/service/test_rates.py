"""What a key may use: a bucket of engine rows, against a clock that the test turns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.access import rates
from service.access.rates import Bucket
from service.errors import RateUsedUp
from tests.service.clock import Clock


def admitted(bucket: Bucket, rows: int) -> bool:
    try:
        bucket.take(rows)
    except RateUsedUp:
        return False
    return True


def test_a_second_of_the_rate_may_be_used_at_once(clock: Clock) -> None:
    bucket = Bucket(10)
    assert [admitted(bucket, 1) for _ in range(12)] == [True] * 10 + [False] * 2
    clock.now += 0.25
    assert [admitted(bucket, 1) for _ in range(4)] == [True] * 3 + [False]
    clock.now += 3600
    assert sum(admitted(bucket, 1) for _ in range(100)) == 10


def test_a_request_that_costs_more_than_a_second_is_let_in_and_paid_off(clock: Clock) -> None:
    bucket = Bucket(10)
    assert admitted(bucket, 100)
    with pytest.raises(RateUsedUp) as refused:
        bucket.check()
    assert refused.value.detail == "rate: this key's engine rows are used up; try again in 9 s"
    assert refused.value.headers == {"Retry-After": "9"}
    clock.now += 8.9
    assert not admitted(bucket, 1)
    clock.now += 0.2
    assert admitted(bucket, 1)


@pytest.mark.parametrize(("rows", "wait_s"), [(10, 1), (11, 1), (20, 1), (21, 2), (30, 2), (4096, 409)])
def test_retry_after_is_when_the_debt_is_paid(clock: Clock, rows: int, wait_s: int) -> None:
    bucket = Bucket(10)
    bucket.take(rows)
    with pytest.raises(RateUsedUp) as refused:
        bucket.take(1)
    assert refused.value.headers["Retry-After"] == str(wait_s)
    clock.now += wait_s + 1e-6
    bucket.check()


def test_what_is_refused_costs_nothing(clock: Clock) -> None:
    bucket = Bucket(10)
    bucket.take(15)
    for _ in range(100):
        assert not admitted(bucket, 1000)
    clock.now += 0.51
    assert admitted(bucket, 1)


@given(
    rows_per_s=st.floats(0.01, 1000),
    asked=st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 30)), min_size=1, max_size=40),
)
def test_over_time_a_key_gets_its_rate_and_one_request_more(rows_per_s: float, asked: list[tuple[int, float]]) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rates, "monotonic", clock)
        bucket, used, largest, began = Bucket(rows_per_s), 0, 0, clock.now
        for rows, pause_s in asked:
            clock.now += pause_s
            if admitted(bucket, rows):
                used += rows
                largest = max(largest, rows)
                assert used <= rows_per_s * (1 + clock.now - began) * (1 + 1e-9) + largest
