"""What docs/latent-space.md says is so: its code runs, and it lists every claim and option."""

import contextlib
import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from model.__main__ import app
from model.study.claims import CLAIMS
from model.study.plan import Settings

PAGE = (Path(__file__).parents[3] / "docs" / "latent-space.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def ran() -> tuple[dict[str, Any], list[str]]:
    """The names that the blocks define, one after another as they stand, and what each printed."""
    names: dict[str, Any] = {}
    printed = []
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(block, names)  # noqa: S102  # the page is ours
        printed.append(said.getvalue())
    return names, printed


def test_the_blocks_run_and_print_what_the_page_shows(ran: tuple[dict[str, Any], list[str]]) -> None:
    _, printed = ran
    assert len(printed) >= 6
    assert [text for text in printed if text] == re.findall(r"```text\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("theta", [0.0, 1.5, 10.0])
def test_both_estimators_are_within_three_standard_errors_of_two_theta(
    ran: tuple[dict[str, Any], list[str]], theta: float
) -> None:
    n = 100_000
    for estimates in ran[0]["both_gradients"](theta, n=n):
        assert abs(estimates.mean() - 2 * theta) < 3 * estimates.std() / math.sqrt(n)


@pytest.mark.parametrize("theta", [0.0, 1.5, 10.0])
def test_the_score_functions_variance_is_many_times_the_pathwise_ones(
    ran: tuple[dict[str, Any], list[str]], theta: float
) -> None:
    pathwise, score = ran[0]["both_gradients"](theta, n=100_000)
    ratio = float(score.var() / pathwise.var())
    assert ratio == pytest.approx((theta**4 + 14 * theta**2 + 15) / 4, rel=0.1)
    assert ratio > 3


def test_every_claim_stands_on_the_page_with_its_number() -> None:
    listed = re.findall(r"^\| (.*?) \| (.*?) \|$", PAGE.split("## The claims")[1].split("## ")[0], flags=re.MULTILINE)
    assert listed[1:] == [(claim.sentence, claim.number) for claim in CLAIMS]


def test_every_option_of_the_study_stands_on_the_page() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    options = {parameter.opts[0] for parameter in commands["study"].params if parameter.opts[0].startswith("--")}
    listed = set(re.findall(r"`(--[a-z-]+)[ `]", "".join(re.findall(r"^\| `--.*? \|", PAGE, flags=re.MULTILINE))))
    assert options - {"--help"} == listed


def test_the_defaults_of_the_study_are_those_of_the_page() -> None:
    rows = dict(re.findall(r"^\| `--([a-z-]+)` \| `?([^|`]+?)`? \|", PAGE, flags=re.MULTILINE))
    usual = Settings()
    for name in ("seeds", "latent_dim", "sketch", "batch_size", "precision"):
        assert rows[name.replace("_", "-")] == str(getattr(usual, name))
