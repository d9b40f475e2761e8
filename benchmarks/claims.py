"""Figures that stand for themselves, each held against a bar."""

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


def require_none(claims: Sequence[Claim]) -> None:
    """End with a sentence if what must never happen has happened: a bar of 0 hangs on no clock, as others do.

    Raises:  SystemExit
    """
    happened = [
        f"{claim.what}: got {_shown(claim.figure)}" for claim in claims if claim.limit == 0 and not claim.is_met
    ]
    if happened:
        sys.exit(f"{'; '.join(happened)}; expected none")


def _shown(figure: float) -> str:
    return f"{figure:,.0f}" if figure == int(figure) or figure >= 100 else f"{figure:.3g}"
