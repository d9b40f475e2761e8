"""The tables of serving that docs/performance.md has are of the figures that are kept."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results
from benchmarks.bars import Outcome
from benchmarks.kinds import KINDS
from benchmarks.loads import Load
from benchmarks.serving import bar_row, load_row

PAGE = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
ROWS = {
    tuple(cell.strip() for cell in line.strip("|").split("|")) for line in PAGE.splitlines() if line.startswith("|")
}
KEPT = [f"serving-{model}-{kind}" for model in ("small", "medium") for kind in KINDS]


def on_page(row: tuple[str, ...], *, subject: str) -> bool:
    """Whether the page has this row, in a table of one model or behind its name in one of several."""
    return not ROWS.isdisjoint({row, (subject, *row)})


@pytest.fixture(params=KEPT)
def kept(request: pytest.FixtureRequest) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((results.FOLDER / f"{request.param}.json").read_text(encoding="utf-8"))
    return document


def test_the_page_has_every_bar_as_it_was_measured(kept: dict[str, Any]) -> None:
    for one in kept["bars"]:
        figures = {name: one[name] for name in ("what", "sign", "limit", "ours", "theirs")}
        row = bar_row(Outcome(**figures, ratios=tuple(one["ratios"])))
        assert on_page(row, subject=kept["subject"]["name"]), row


def test_the_page_has_every_load_as_it_was_measured(kept: dict[str, Any]) -> None:
    for name, loads in kept["loads"].items():
        row = load_row(name.rpartition(", c = ")[0], [Load(**load) for load in loads])
        assert on_page(row, subject=kept["subject"]["name"]), row
