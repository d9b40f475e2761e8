"""Every kind of request is answered as it should be, and what a server holds is noted. `make soak` sends 200,000."""

from dataclasses import replace

import pytest

from benchmarks import leaks
from benchmarks.connections import Answer
from benchmarks.leaks import SLICES, Held, Left
from benchmarks.mixture import Asked
from benchmarks.subjects import Subject


def test_every_kind_of_request_is_answered(subject: Subject) -> None:
    found = leaks.measure(subject, count=2 * SLICES, workers=1, variants=1)
    assert found.errors == {}
    assert SLICES < found.kinds <= found.requests == 2 * SLICES
    assert len(found.held) == SLICES
    assert all(min(held.resident_mb, held.descriptors, held.threads) > 0 for held in found.held)


@pytest.mark.parametrize(
    ("status", "media_type", "is_answered"),
    [(200, "image/png", True), (200, "application/json", False), (429, "image/png", False)],
)
def test_an_answer_is_one_of_the_status_and_form_that_were_asked_for(
    status: int, media_type: str, is_answered: bool
) -> None:
    answer = Answer(status, f"HTTP/1.1 {status} \r\nContent-Type: {media_type}\r\n".encode(), b"")
    assert Asked(b"", 200, "image/png").is_answered_by(answer) is is_answered


STILL = Held(100.0, 30, 8)
GOOD = Left(kinds=10, requests=1000, seconds=1.0, errors={}, held=(STILL,) * SLICES)
BAD = {
    "errors": replace(GOOD, errors={"GET /sample: 500": 1}),
    "resident memory, last tenth : after the first": replace(
        GOOD, held=(STILL,) * 90 + (replace(STILL, resident_mb=106.0),) * 10
    ),
    "more file descriptors than when warm": replace(GOOD, held=(STILL,) * 99 + (replace(STILL, descriptors=31),)),
    "more threads than when warm": replace(GOOD, held=(STILL,) * 99 + (replace(STILL, threads=9),)),
}


def test_what_stays_as_it_was_meets_every_bar() -> None:
    assert all(claim.is_met for claim in leaks.claimed(GOOD))
    assert {claim.what for claim in leaks.claimed(GOOD)} == set(BAD)


def test_numbers_that_come_and_go_are_no_leak() -> None:
    held = (replace(STILL, threads=9, descriptors=31), STILL) * (SLICES // 2)
    assert all(claim.is_met for claim in leaks.claimed(replace(GOOD, held=held[1:] + held[:1])))


@pytest.mark.parametrize("what", BAD)
def test_what_grows_misses_its_bar(what: str) -> None:
    assert [claim.what for claim in leaks.claimed(BAD[what]) if not claim.is_met] == [what]
