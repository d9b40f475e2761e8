"""One process at a time that writes into the folder of a run, or of a study."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from model.errors import BadSetting

_FILE = "state/lock"


# What a folder holds for whoever finds its lock taken.
_A_RUN = "a run that another process is training"


@contextmanager
def held(folder: Path, *, what: str = _A_RUN) -> Iterator[None]:
    """Meanwhile no other process gets the lock of a folder; it ends with this process, however that ends.

    Raises:  BadSetting if another one has it
    """
    path = folder / _FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        _lock(folder, file, how=fcntl.LOCK_EX, what=what)
        yield


def require_idle(folder: Path) -> None:
    """Nothing, if no process has the lock of a run.

    Raises:  BadSetting
    """
    if (folder / _FILE).exists():
        with (folder / _FILE).open() as file:
            _lock(folder, file, how=fcntl.LOCK_SH, what=_A_RUN)  # shared, as all processes of a run may ask at once


def _lock(folder: Path, file: IO[str], *, how: int, what: str) -> None:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BadSetting(f"{folder}: got {what}, expected one that none is; wait for it, or stop it") from error
    except OSError:  # some disks in networks know no locks: there nobody can be refused
        pass
