"""Figures that stand for themselves, each held against a bar."""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import results
from benchmarks.bars import Sign


@dataclass(frozen=True)
class Claim:
    """What was measured, what it must be, and what it was made of in words."""

    what: str
    sign: Sign
    limit: float
    figure: float
    of: str = ""
    must_hold: bool = False
    """Whether a program fails without it: true of what hangs on no clock."""

    @property
    def is_met(self) -> bool:
        """Whether the figure is on the right side of the limit; one that is not a number is not."""
        return self.figure >= self.limit if self.sign == "≥" else self.figure <= self.limit


def table(claims: Sequence[Claim]) -> str:
    """Claims as Markdown."""
    rows = [
        (claim.what, f"{claim.sign} {claim.limit:g}", _shown(claim.figure), claim.of, "yes" if claim.is_met else "no")
        for claim in claims
    ]
    return results.table(("what", "bar", "measured", "of", "met"), rows)


def as_json(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """Claims as they are kept."""
    return [asdict(claim) | {"met": claim.is_met} for claim in claims]


def require(claims: Sequence[Claim]) -> None:
    """End with a sentence if what must hold does not: a bar of 0 hangs on no clock either.

    Raises:  SystemExit
    """
    broken = [
        f"{claim.what}: got {_shown(claim.figure)}, expected {claim.sign} {claim.limit:g}"
        for claim in claims
        if (claim.must_hold or claim.limit == 0) and not claim.is_met
    ]
    if broken:
        sys.exit("; ".join(broken))


def ratio(figure: float, to: float) -> float:
    """One figure to another one; infinite where that is 0, as of a service that answered nothing."""
    return figure / to if to else math.inf


def _shown(figure: float) -> str:
    if not math.isfinite(figure):
        return f"{figure}"
    return f"{figure:,.0f}" if figure == int(figure) or figure >= 100 else f"{figure:.3g}"
