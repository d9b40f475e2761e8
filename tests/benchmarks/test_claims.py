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
    claims.require([slow, Claim("lost", "≤", 0, 0), Claim("memory", "≤", 1.05, 1.01, must_hold=True)])
    with pytest.raises(SystemExit, match=r"^lost: got 3, expected ≤ 0; memory: got 1\.06, expected ≤ 1\.05$"):
        claims.require([slow, Claim("lost", "≤", 0, 3), Claim("memory", "≤", 1.05, 1.06, must_hold=True)])


@pytest.mark.parametrize(
    ("figure", "shown"), [(claims.ratio(1, 0), "inf"), (math.nan, "nan"), (claims.ratio(3, 2), "1.5")]
)
def test_a_figure_that_is_no_number_is_told(figure: float, shown: str) -> None:
    """As of a service that answered nothing."""
    assert f"| {shown} " in claims.table([Claim("it", "≤", 2, figure)])
