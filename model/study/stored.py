"""A plan whose pictures lie on disk once, to be mapped by every process, so that memory does not grow with them."""

import io
import pickle
from pathlib import Path

import numpy as np

from model.study.plan import Plan


def store(plan: Plan, folder: Path) -> bytes:
    """What `load` makes the plan of, in any process, while the arrays that are written to the folder stay there."""
    content = io.BytesIO()
    _Writer(content, folder).dump(plan)
    return content.getvalue()


def load(stored: bytes, folder: Path) -> Plan:
    """The plan that was stored; its arrays are read off the disk as they are needed."""
    found: Plan = _Reader(io.BytesIO(stored), folder).load()
    return found


class _Writer(pickle.Pickler):
    """Writes each array to a file of its own, once, and its number in its place."""

    def __init__(self, file: io.BytesIO, folder: Path) -> None:
        super().__init__(file)
        self._folder = folder
        self._numbers: dict[int, int] = {}

    def persistent_id(self, found: object) -> int | None:
        if not isinstance(found, np.ndarray):
            return None
        if id(found) not in self._numbers:
            self._numbers[id(found)] = len(self._numbers)
            np.save(_file(self._folder, self._numbers[id(found)]), found)
        return self._numbers[id(found)]


class _Reader(pickle.Unpickler):
    """Maps the array of each number."""

    def __init__(self, file: io.BytesIO, folder: Path) -> None:
        super().__init__(file)
        self._folder = folder

    def persistent_load(self, number: int) -> np.ndarray:
        # Copied where it is written to, which nobody does: torch warns of arrays that cannot be.
        return np.asarray(np.load(_file(self._folder, number), mmap_mode="c"))


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number}.npy"
