"""What a key may use of the engine: so many engine rows a second."""

from math import ceil
from time import monotonic

from service.errors import RateUsedUp


class Bucket:
    """A token bucket of engine rows that holds those of one second, and may be in debt.

    A request is let in unless there is a debt, whatever it costs; its cost is then taken, and what was not there is
    paid off by time. So one rule serves a row and a hundred, and over time a key gets its rate and no more.
    """

    def __init__(self, rows_per_s: float) -> None:
        self._rows_per_s = rows_per_s
        self._rows = rows_per_s
        self._filled_at = monotonic()

    def check(self) -> None:
        """Refuse a request while there is a debt.

        Raises:  RateUsedUp
        """
        now = monotonic()
        self._rows = min(self._rows_per_s, self._rows + self._rows_per_s * (now - self._filled_at))
        self._filled_at = now
        if self._rows <= 0:
            wait_s = max(1, ceil(-self._rows / self._rows_per_s))
            raise RateUsedUp(
                f"rate: this key's engine rows are used up; try again in {wait_s} s",
                headers={"Retry-After": str(wait_s)},
            )

    def take(self, engine_rows: int) -> None:
        """Let a request in at its cost.

        Raises:  RateUsedUp
        """
        self.check()
        self._rows -= engine_rows
