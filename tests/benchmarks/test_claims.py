"""A claim is met on its side of the bar."""

import json
import math

import pytest

from benchmarks import claims
from benchmarks.bars import Sign
from benchmarks.claims import Claim


@pytest.mark.parametrize(
    ("sign", "figure", "met"),
    [("≥", 0.95, True), ("≥", 0.94, False), ("≤", 0.95, True), ("≤", 0.96, False), ("≤", math.nan, False)],
)
def test_a_claim_is_met_on_its_side(sign: Sign, figure: float, met: bool) -> None:
    assert Claim("it", sign, 0.95, figure).is_met is met


def test_claims_make_a_table_and_json() -> None:
    held = [Claim("lost", "≤", 0, 0, "1,000 requests"), Claim("p99 : before", "≤", 2, 2.345)]
    assert claims.table(held).splitlines() == [
        "| what         | bar | measured | of             | met |",
        "| ------------ | --- | -------- | -------------- | --- |",
        "| lost         | ≤ 0 | 0        | 1,000 requests | yes |",
        "| p99 : before | ≤ 2 | 2.35     |                | no  |",
    ]
    assert [each["met"] for each in json.loads(json.dumps(claims.as_json(held)))] == [True, False]


def test_what_must_never_happen_ends_a_program_and_a_slow_clock_does_not() -> None:
    slow = Claim("seconds", "≤", 5, 7)
    claims.require_none([slow, Claim("lost", "≤", 0, 0)])
    with pytest.raises(SystemExit, match=r"^lost: got 3; wrong: got 1; expected none$"):
        claims.require_none([slow, Claim("lost", "≤", 0, 3), Claim("wrong", "≤", 0, 1)])
