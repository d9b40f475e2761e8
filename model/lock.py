"""One process at a time that writes into a run's folder."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from model.errors import BadSetting

_FILE = "state/lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Meanwhile no other process gets the lock of a run; it ends with this process, however that ends.

    Raises:  BadSetting if another one has it
    """
    path = folder / _FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        _lock(folder, file, how=fcntl.LOCK_EX)
        yield


def require_free(folder: Path) -> None:
    """Nothing, if no process has the lock of a run.

    Raises:  BadSetting
    """
    if (folder / _FILE).exists():
        with (folder / _FILE).open() as file:
            _lock(folder, file, how=fcntl.LOCK_SH)  # shared, as all processes of a run may ask at once


def _lock(folder: Path, file: IO[str], *, how: int) -> None:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BadSetting(
            f"{folder}: got a run that another process is training, expected one that none is; wait for it, or stop it"
        ) from error
    except OSError:  # some disks in networks know no locks: there nobody can be refused
        pass
