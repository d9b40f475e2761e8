import platform
import subprocess
import sys

import pytest

# Megabytes that are filled and freed again and again, and the pages that the system has to hand out for them.
COUNT = """
import ctypes, resource, sys
from model.memory import keep_freed

def used(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        block = bytearray(12_000_000)
        block[:] = bytes(12_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "kept":
    assert keep_freed()
used(3)
print(used(20))
"""


def pages(how: str) -> int:
    told = subprocess.run([sys.executable, "-c", COUNT, how], check=True, capture_output=True, text=True)
    return int(told.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no mallopt")
def test_what_was_freed_is_not_asked_for_again() -> None:
    """Twenty times 24 MB are some hundred thousand pages, of 4 KiB each."""
    assert pages("kept") < 1000


def test_where_there_is_no_such_allocator_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    from model import memory

    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert not memory.keep_freed()
