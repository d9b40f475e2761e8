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
from model.study.page import WORDS
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
    table = PAGE.split("\n| claim | decided by |\n|---|---|\n")[1].split("\n\n")[0]
    listed = re.findall(r"^\| (.*?) \| (.*?) \|$", table, flags=re.MULTILINE)
    assert listed == [(claim.sentence, claim.number) for claim in CLAIMS]


def test_every_verdict_stands_on_the_page() -> None:
    table = PAGE.split("\n| word | when |\n|---|---|\n")[1].split("\n\n")[0]
    assert re.findall(r"^\| \*\*(.*?)\*\* \|", table, flags=re.MULTILINE) == list(WORDS)


def test_the_page_says_what_a_draw_moves_at_the_sigmas_it_names() -> None:
    """0.3 is the likelihood's sigma, 784 and 16 are the numbers of a picture and of one z."""
    (said,) = re.findall(r"sigma over spread ([\d.]+) for the VAE and ([\d.]+) for beta 4, that is ([\d.]+) and", PAGE)
    (beta_4,) = re.findall(r"that is [\d.]+ and ([\d.]+); measured", PAGE)
    for sigma, beta, moved in ((said[0], 1, said[2]), (said[1], 4, beta_4)):
        assert 0.3 * math.sqrt(beta * 16 * (1 - float(sigma) ** 2) / 784) == pytest.approx(float(moved), abs=1e-4)


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
