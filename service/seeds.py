"""The seed of an answer: as it was asked for, or else drawn for it."""

import secrets
from typing import NamedTuple


class ChosenSeed(NamedTuple):
    """A seed, and whether it was drawn for want of one that was asked for."""

    value: int
    is_drawn: bool


def choose(asked: int | None) -> ChosenSeed:
    """The seed that was asked for, or a fresh one below 2⁵³, which every JSON reader keeps exact."""
    if asked is None:
        return ChosenSeed(secrets.randbelow(2**53), is_drawn=True)
    return ChosenSeed(asked, is_drawn=False)
