"""Beside hostile clients a well-behaved one is answered, and they get no 5xx. `make soak` compares its times, and holds
that all hostile inputs were sent: here they are all that a moment has room for.
"""

from dataclasses import replace

import pytest

from benchmarks import hostile, neighbours, requests
from benchmarks.connections import as_bytes
from benchmarks.neighbours import Beside
from benchmarks.subjects import Subject
from tests.benchmarks.test_arrivals import OK, service
from tests.benchmarks.test_overload import ARRIVED

OF_THE_CLOCK = {"its p99 beside hostile clients : alone", "hostile inputs that were never sent"}


def test_a_well_behaved_client_is_answered_beside_hostile_ones(subject: Subject) -> None:
    sent = [as_bytes(request) for request in requests.encode(subject)]
    found = neighbours.measure(subject.bundle, sent, seconds=1, rounds=1, drippers=3, bombs_per_s=1000)
    assert {claim.what for claim in neighbours.claimed(found) if not claim.is_met} <= OF_THE_CLOCK
    assert [each.accepted for each in (*found.alone, *found.beside)] == [neighbours.PER_S] * 2
    assert any(what.startswith("bomb: ") for what in found.met)


def test_what_one_round_did_not_come_to_is_what_the_next_one_sends_first() -> None:
    bombs, sent = {f"{place}": b"GET / HTTP/1.1\r\n\r\n" for place in range(10)}, set[str]()
    with service(OK) as running:
        while len(sent) < len(bombs):
            bombs = neighbours.unsent_first(bombs, sent)
            met = hostile.attack(running.port, bombs, seconds=0.2, drippers=0, bombs_per_s=20)
            assert met.sent == set(list(bombs)[: len(met.sent)])
            assert met.times == {"bomb: 200": len(met.sent)}
            sent |= met.sent


WELL = replace(ARRIVED, accepted=100, refused=0)
GOOD = Beside((WELL,) * 3, (WELL,) * 3, {"bomb: 400": 5, "dripped body: 408": 1}, unsent=())
SLOW = replace(WELL, p99_ms=21)


def test_what_is_well_meets_every_bar() -> None:
    assert all(claim.is_met for claim in neighbours.claimed(GOOD))
    assert all(claim.is_met for claim in neighbours.claimed(replace(GOOD, beside=(WELL, SLOW, WELL)))), "one of three"


@pytest.mark.parametrize(
    ("found", "what"),
    [
        (replace(GOOD, beside=(WELL, SLOW, SLOW)), "its p99 beside hostile clients : alone"),
        (replace(GOOD, beside=(replace(WELL, accepted=99),) * 3), "its requests that were not answered 200"),
        (replace(GOOD, met={"bomb: 500": 1}), "hostile clients answered 5xx"),
        (replace(GOOD, unsent=("TLS",)), "hostile inputs that were never sent"),
    ],
)
def test_what_is_not_well_misses_its_bar(found: Beside, what: str) -> None:
    assert [claim.what for claim in neighbours.claimed(found) if not claim.is_met] == [what]
