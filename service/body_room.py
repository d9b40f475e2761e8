"""Bodies hold memory for as long as their senders take to send them and we to answer: together they are bounded."""

from io import BytesIO

from service.errors import QueueFull, found_at

# All of them together have as many bytes at most as so many of the largest.
_MOST = 8


class BodyRoom:
    """What all of them hold that share an event loop.

    None may have more than it leaves to others. So a few that are large and do not end never take all the room: smaller
    ones still come in, and what these take the large ones may not have any more.
    """

    def __init__(self, *, max_body_bytes: int) -> None:
        self._room_bytes = _MOST * max_body_bytes
        self._held_bytes = 0

    def begin(self) -> "Begun":
        """One more, which counts until it has ended in one way or another."""
        return Begun(self)

    def hold(self, n_bytes: int, *, more: int) -> None:
        """Count more of a body that has so many bytes already.

        Raises:  QueueFull
        """
        size, others = n_bytes + more, self._held_bytes - n_bytes
        most = (self._room_bytes - others) // 2
        if size > most:
            expected = f"at most {most:,} bytes while {others:,} bytes of others are read and answered"
            refusal = found_at("body", QueueFull, got=f"{size:,} bytes", expected=expected)
            refusal.headers["retry-after"] = "1"
            raise refusal
        self._held_bytes += more

    def let_go(self, n_bytes: int) -> None:
        """Count a body of so many bytes no more."""
        self._held_bytes -= n_bytes


class Begun:
    """One body, as far as it has come; it counts until `end`."""

    def __init__(self, among: BodyRoom) -> None:
        self._among = among
        self._content = BytesIO()  # grows with what arrives, whatever is declared, and gives it away without a copy
        self.size = 0

    def end(self) -> None:
        """Count it no more."""
        self._among.let_go(self.size)
        self.size = 0

    def write(self, chunk: bytes) -> None:
        """Take the next of it.

        Raises:  QueueFull
        """
        self._among.hold(self.size, more=len(chunk))
        self.size += len(chunk)  # before there may be no memory for it: what is held is let go in the end
        self._content.write(chunk)

    def content(self) -> bytes:
        """All of it that has come."""
        return self._content.getvalue()
