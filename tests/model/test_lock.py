"""One process at a time in a run's folder."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from model import lock
from model.errors import BadSetting
from tests.processes import begun
from tests.waiting import until

HOLDER = """
import sys, time
from pathlib import Path
from model import lock

with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_one_ends_however_it_does(tmp_path: Path) -> None:
    sentence = r"got a run that another process is training, expected one that none is; wait for it, or stop it$"
    with begun((sys.executable, "-c", HOLDER, str(tmp_path)), stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BadSetting, match=sentence):
            lock.require_idle(tmp_path)
        with pytest.raises(BadSetting, match=sentence), lock.held(tmp_path):
            pass
        holder.kill()
        until(lambda: holder.poll() is not None)
    lock.require_idle(tmp_path)
    with lock.held(tmp_path):
        pass


def test_several_may_ask_at_once_and_leave_nothing_where_nobody_was(tmp_path: Path) -> None:
    lock.require_idle(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with lock.held(tmp_path):
        pass
    with (tmp_path / "state" / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        lock.require_idle(tmp_path)


def test_where_a_disk_knows_no_locks_nobody_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_file: object, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with lock.held(tmp_path):
        lock.require_idle(tmp_path)
