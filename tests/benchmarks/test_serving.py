"""The tables of serving that docs/performance.md has are of the figures that are kept, and of no others."""

import json
from pathlib import Path

from benchmarks import results
from benchmarks.bars import Outcome
from benchmarks.kinds import KINDS
from benchmarks.loads import Load
from benchmarks.serving import bar_row, load_row

PAGE = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
Row = tuple[str, ...]


def part(begins: str, ends: str) -> str:
    """What stands on the page between two lines."""
    _, found, rest = PAGE.partition(f"\n{begins}\n")
    assert found, begins
    text, found, _ = rest.partition(f"\n{ends}")
    assert found, ends
    return text


def rows_of(text: str) -> list[Row]:
    """All rows of its tables but their heads."""
    tables = [lines for lines in text.strip().split("\n\n") if lines.startswith("|")]
    rows = [line for lines in tables for line in lines.splitlines()[2:] if line.startswith("|")]
    return [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in rows]


def kept(model: str, kind: str) -> list[Row]:
    """The rows of what was measured."""
    document = json.loads((results.FOLDER / f"serving-{model}-{kind}.json").read_text(encoding="utf-8"))
    rows = []
    for one in document["bars"]:
        figures = {name: one[name] for name in ("what", "sign", "limit", "ours", "theirs")}
        rows.append(bar_row(Outcome(**figures, ratios=tuple(one["ratios"]))))
    for name, loads in document["loads"].items():
        rows.append(load_row(name.rpartition(", c = ")[0], [Load(**load) for load in loads]))
    return rows


def test_one_png_a_request_is_as_it_was_measured() -> None:
    assert sorted(rows_of(part("*small*:", "*medium*:"))) == sorted(kept("small", "encode"))
    assert sorted(rows_of(part("*medium*:", "**On the other processor**"))) == sorted(kept("medium", "encode"))


def test_all_other_kinds_are_as_they_were_measured() -> None:
    found = rows_of(part("### Rows in bulk, latents to pictures, grids", "### Where the microseconds go"))
    others = [kind for kind in KINDS if kind != "encode"]
    assert sorted(found) == sorted(
        (model, *row) for model in ("small", "medium") for kind in others for row in kept(model, kind)
    )
