"""Memory that the process keeps instead of giving it back: torch asks for megabytes at every operation."""

import ctypes
import sys

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3

# Largest block that comes from the process's own memory; some versions of glibc allow no more than the second.
_LARGEST_BYTES = (2**30, 2**25)
# So much that is free stays with the process, and so much more than was asked for is fetched at a time.
_KEPT_BYTES = 2**31 - 1
_FETCHED_BYTES = 2**26


def keep_freed() -> bool:
    """Whether what torch frees on a CPU is kept for what it asks for next, from now on and in all of this process.

    By itself glibc gives large blocks back to the system at once and gets new ones, of which it fills each page with
    zeros when it is first touched: of a convolutional network's operations that can be a third of the time.

    Source:  mallopt(3)
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:  # an allocator of another kind
        return False
    largest = any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST_BYTES)
    return bool(largest and mallopt(_TRIM_THRESHOLD, _KEPT_BYTES) and mallopt(_TOP_PAD, _FETCHED_BYTES))
