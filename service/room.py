"""Room for so much work at a time: who wants more than is left waits, first come first served."""

import asyncio
from collections import deque


class Room:
    """Room for the work of one event loop.

    Units:  whatever the work is weighed in
    """

    def __init__(self, size: int) -> None:
        self._size = self._left = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, weight: int) -> int:
        """Room for work of a weight, more than there ever is counting as all of it; what is to be given back."""
        weight = min(weight, self._size)
        if not self._waiting and weight <= self._left:
            self._left -= weight
            return weight
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((weight, turn))
        try:
            await turn
        except asyncio.CancelledError:
            came = turn.done() and not turn.cancelled()
            self.give(weight if came else 0)  # those behind may have room
            raise
        return weight

    def give(self, weight: int) -> None:
        """Give room back, to whoever is next."""
        self._left += weight
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self._left):
            wanted, turn = self._waiting.popleft()
            if not turn.done():  # or else it was given up
                self._left -= wanted
                turn.set_result(None)
