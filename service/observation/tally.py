"""Numbers that several processes count side by side: each has a place of its own to write, any of them adds up all."""

from ctypes import Array, c_double
from multiprocessing import get_context

# Of each place. A cell that nobody counts in costs eight bytes.
CELLS = 4096

# The first cells hold what is true only while the process of a place lives; the others count on after its end.
LIVE_CELLS = 16

# The first of them: how often the event loop of the process has come round since it serves, which its parent looks at.
BEATS = 0

# The first of those others are its parent's: how many processes of a place have ended, and in the first place how many
# reloads were done and refused, and whether the last one was refused. A process that serves by itself counts those too.
ENDS, RELOADS_DONE, RELOADS_REFUSED, LAST_REFUSED = range(LIVE_CELLS, LIVE_CELLS + 4)

Memory = Array[c_double]


class NoSharedMemory(Exception):
    """Processes cannot count side by side here; the service stops with this sentence."""


def shared(places: int) -> Memory:
    """Room for so many processes, all zero, to be handed to each as it is started. No file is left of it.

    Raises:  NoSharedMemory
    """
    try:
        return get_context("spawn").RawArray(c_double, places * CELLS)
    except OSError as error:
        wanted = f"expected {places * CELLS * 8:,} bytes of shared memory (/dev/shm)"
        raise NoSharedMemory(f"workers: got {error.strerror}, {wanted}; --workers 1 needs none") from error


def bury(memory: Memory, place: int) -> None:
    """Forget what was true of the process that has just ended in a place, and count its end."""
    start = place * CELLS
    memory[start : start + LIVE_CELLS] = [0.0] * LIVE_CELLS
    memory[start + ENDS] += 1


def beats(memory: Memory, place: int) -> float:
    """How often the event loop of the process in a place has come round."""
    return memory[place * CELLS + BEATS]


class Tally:
    """The cells of one place, of its own memory unless it shares some. One thread alone writes a cell: a number is
    read, added to and written back.
    """

    def __init__(self, memory: Memory | None = None, *, place: int = 0) -> None:
        whole = (c_double * CELLS)() if memory is None else memory
        every = memoryview(whole).cast("B").cast("d")
        self._places = [every[start : start + CELLS] for start in range(0, len(every), CELLS)]
        self.is_shared = len(self._places) > 1
        self.cells = self._places[place]
        self._live, self._lasting = BEATS + 1, LAST_REFUSED + 1

    def reserve(self, count: int) -> int:
        """The first of so many cells that count on after the end of the process."""
        first, self._lasting = self._lasting, self._lasting + count
        if self._lasting > CELLS:
            raise MemoryError(f"tally: {self._lasting} cells are wanted, {CELLS} are there")
        return first

    def reserve_live(self) -> int:
        """A cell that is zero again once the process has ended."""
        cell, self._live = self._live, self._live + 1
        if self._live > LIVE_CELLS:
            raise MemoryError(f"tally: {self._live} live cells are wanted, {LIVE_CELLS} are there")
        return cell

    def beat(self) -> None:
        """Note that the event loop has come round once more."""
        self.cells[BEATS] += 1

    def reloaded(self, *, is_refused: bool) -> None:
        """Count a reload."""
        self.cells[RELOADS_REFUSED if is_refused else RELOADS_DONE] += 1
        self.cells[LAST_REFUSED] = is_refused

    def sums(self) -> list[float]:
        """Each cell that is reserved, added up over all places."""
        return [sum(cells) for cells in zip(*[place[: self._lasting] for place in self._places], strict=True)]

    def total(self, cell: int) -> float:
        """One cell, added up over all places."""
        return sum([place[cell] for place in self._places])

    def each(self, cell: int) -> list[float]:
        """One cell of every place."""
        return [place[cell] for place in self._places]
