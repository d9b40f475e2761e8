"""Ratios are taken within rounds, and bars are met on the side that their sign says."""

import pytest

from benchmarks.bars import BARS, Bar, Outcome, Round, Sign, outcome
from benchmarks.contenders import contenders
from benchmarks.kinds import KINDS
from benchmarks.loads import Load
from benchmarks.raw import Limits
from benchmarks.servers import SHIPPED_BUNDLE


def load(requests_per_s: float, *, p50_ms: float = 1.0, p99_ms: float = 2.0) -> Load:
    found = {"cpu_s_per_1k": 0.1, "resident_mb": 100.0, "elsewhere_cores": 0.0}
    return Load(64, requests_per_s, p50_ms, p99_ms, **found, answers=1000, errors=0)


def round_of(ours: float, theirs: float) -> Round:
    return Round({("ours", "encode", 64): load(ours), ("theirs", "encode", 64): load(theirs)}, Limits({}, 0.001))


def rate(server: str, found: Round) -> float:
    return found.loads[server, "encode", 64].requests_per_s


def bar(sign: Sign = "≥", *, limit: float | None = 2.0) -> Bar:
    limits = {} if limit is None else {"small": limit}
    return Bar("rate", "encode", sign, lambda r: rate("ours", r), lambda r: rate("theirs", r), limits)


def test_a_ratio_is_the_median_of_the_ratios_of_each_round() -> None:
    rounds = [round_of(100, 10), round_of(40, 20), round_of(90, 30)]
    found = outcome(bar(), rounds, subject="small")
    assert found is not None
    # The median of ours over the median of theirs would be 4.5.
    assert list(found.ratios) == [10, 2, 3]
    assert (found.ratio, found.ours, found.theirs) == (3, 90, 20)


def test_a_figure_of_ours_alone_is_held_against_the_bar_itself() -> None:
    alone = Bar("CPU", "encode", "≤", lambda r: rate("ours", r), None, {"small": 50})
    found = outcome(alone, [round_of(10, 1), round_of(60, 1), round_of(20, 1)], subject="small")
    expected = Outcome("CPU", "≤", 50, 20, None, (10, 60, 20))
    assert found == expected
    assert expected.is_met


@pytest.mark.parametrize(
    ("sign", "ratio", "met"), [("≥", 2.0, True), ("≥", 1.9, False), ("≤", 2.0, True), ("≤", 2.1, False)]
)
def test_a_bar_is_met_on_its_side(sign: Sign, ratio: float, met: bool) -> None:
    found = outcome(bar(sign), [round_of(10 * ratio, 10)], subject="small")
    assert found is not None
    assert found.is_met is met


def test_a_subject_without_a_limit_neither_meets_nor_misses_it() -> None:
    found = outcome(bar(), [round_of(30, 10)], subject="fashion")
    assert found is not None
    assert (found.limit, found.is_met, found.ratio) == (None, None, 3)


def test_what_was_not_measured_has_no_outcome() -> None:
    rounds = [Round({("ours", "encode", 64): load(10)}, Limits({}, 0.001))]
    assert outcome(bar(), rounds, subject="small") is None


def test_the_limit_of_a_graph_is_its_best_setting_and_batch_size() -> None:
    limits = Limits({"encoder": {"spinning": {"8": 5.0, "32": 9.0}, "not": {"8": 7.0, "32": 8.0}}}, 0.001)
    assert limits.best("encoder") == 9.0


def test_grids_are_held_against_their_rows_and_one_png_after_the_other() -> None:
    (sampled,) = [each for each in BARS if each.kind == "sample"]
    limits = Limits({"decoder": {"one": {"8": 800.0}}}, grid_png_s=0.005)
    found = outcome(sampled, [Round({("vae-serve", "sample", 16): load(30)}, limits)], subject="medium")
    assert found is not None
    # 16 rows take 20 ms and the PNG 5: 40 grids a second.
    assert found.theirs == pytest.approx(40)
    assert found.ratio == pytest.approx(0.75)
    assert not found.is_met


def test_every_bar_stands_on_loads_that_are_made() -> None:
    servers = contenders(SHIPPED_BUNDLE, litserve="python", openvino="python")
    made = {
        (server.name, kind, c): load(10)
        for server in servers
        for kind in server.serves
        for c in KINDS[kind].connections
    }
    rates = {"one": {"8": 100.0}}
    rounds = [Round(made, Limits({"encoder": rates, "decoder": rates}, 0.001))]
    assert [each.what for each in BARS if outcome(each, rounds, subject="small") is None] == []
