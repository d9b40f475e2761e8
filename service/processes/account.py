"""How the workers of one place have ended: how long it stays empty before another one, and whether one can help."""

# So many in a row that ended before they listened: another one would do so too.
_TRIES = 3

# A worker that has answered requests for so long was a good one. Of those that were not, a few in a row are replaced at
# once; before each further one there is a pause, twice as long as the last one, up to a bound.
_GOOD_AFTER_S = 10.0
_REPLACED_AT_ONCE = 5
_LONGEST_PAUSE_S = 30.0


class Account:
    """The ends of a place's workers; `failed` is how many in a row have ended before they listened."""

    def __init__(self) -> None:
        self.failed = 0
        self._ended_soon = 0

    def could_not_begin(self) -> None:
        """Note that the system had nothing to begin one with, which it may have after a pause."""
        self._ended_soon = max(self._ended_soon, _REPLACED_AT_ONCE)
        self.did_not_listen()

    def did_not_listen(self) -> None:
        """Note one that ended before it listened."""
        self.failed += 1
        self._ended_soon += 1

    def served(self, seconds: float) -> None:
        """Note one that answered requests for so long."""
        self.failed = 0
        self._ended_soon = 1 if seconds > _GOOD_AFTER_S else self._ended_soon + 1

    @property
    def is_hopeless(self) -> bool:
        """Whether another one is likely to end before it listens too."""
        return self.failed >= _TRIES

    @property
    def pause_s(self) -> float:
        """How long the place stays empty now.

        Units:  seconds
        """
        further = self._ended_soon - _REPLACED_AT_ONCE
        # In whole numbers: a place may fail for days, and 2.0 to the power of 1024 is none.
        return 0.0 if further <= 0 else min(_LONGEST_PAUSE_S, 2 ** (further - 1))
