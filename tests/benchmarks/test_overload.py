"""A short load on a small model: nothing fails, health is answered, and a full queue refuses all. `make soak` asks for
ten times the capacity for a minute.
"""

from dataclasses import replace

import pytest

from benchmarks import overload, requests
from benchmarks.arrivals import Arrived
from benchmarks.connections import as_bytes
from benchmarks.overload import Case, Overload, Watched
from benchmarks.subjects import Subject


def test_what_is_not_answered_is_refused_and_health_is_answered_meanwhile(subject: Subject) -> None:
    sent = [as_bytes(request) for request in requests.encode(subject)]
    found = overload.measure(subject.bundle, sent, times=0.5, seconds=1.5)
    for each in (found.before, found.overload, found.after):
        assert each.failed == 0
        assert each.accepted > 0
    assert found.overload.sent == round(0.5 * found.before.accepted_per_s * 1.5)
    assert found.watched.not_healthy == 0
    assert found.watched.health_ms
    assert found.watched.resident_mb
    assert found.refusals.refused == found.refusals.sent > 0
    assert found.refusal_us > 0


ARRIVED = Arrived(
    sent=100, accepted=10, refused=90, failed=0, seconds=1, accepted_per_s=10, p50_ms=5, p99_ms=10,
    lag_p99_ms=1, lag_max_ms=2, generator_cores=0.1,
)  # fmt: skip
GOOD = Overload(ARRIVED, ARRIVED, ARRIVED, Watched((1.0, 2.0), 0, (100.0,)), 100.0, ARRIVED, 30.0)
BAD = {
    "answered : capacity": replace(GOOD, overload=replace(ARRIVED, accepted_per_s=9)),
    "p99 of what was accepted : at capacity": replace(GOOD, overload=replace(ARRIVED, p99_ms=21)),
    "neither 200 nor 429 with Retry-After": replace(GOOD, overload=replace(ARRIVED, failed=1)),
    "CPU of a refusal, µs": replace(GOOD, refusal_us=61),
    "resident memory : before": replace(GOOD, watched=Watched((1.0,), 0, (100.0, 106.0, 100.0))),
    "slowest answer of /health, ms": replace(GOOD, watched=Watched((1.0, 51.0), 0, (100.0,))),
    "answers of /health other than 200": replace(GOOD, watched=Watched((1.0,), 1, (100.0,))),
}
CASE = Case(times=10, goodput=0.95)


def test_what_is_well_meets_every_bar() -> None:
    assert all(claim.is_met for claim in overload.claimed(GOOD, CASE))
    assert {claim.what for claim in overload.claimed(GOOD, CASE)} == set(BAD)


@pytest.mark.parametrize("what", BAD)
def test_what_is_not_well_misses_its_bar(what: str) -> None:
    assert [claim.what for claim in overload.claimed(BAD[what], CASE) if not claim.is_met] == [what]
