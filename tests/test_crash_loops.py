"""Workers that end again and again: they are replaced at once, then later and later, and the others serve on."""

import os
import re
import shutil
import signal
from pathlib import Path

import httpx

from tests.service.linear import linear, write_linear
from tests.serving import Server, serving
from tests.test_workers import workers
from tests.waiting import WITHIN_S, until

ASKED = "/sample?seed=5"


def listening(server: Server) -> int:
    """How many workers have ever come to answer requests."""
    return "".join(server.said).count("Application startup complete")


def counted(server: Server, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics", timeout=WITHIN_S).text
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


def test_a_place_whose_workers_end_soon_stays_empty_for_a_while_which_the_log_and_metrics_tell() -> None:
    with serving(["--workers", "2"]) as server:
        for times in range(6):
            until(lambda times=times: listening(server) == 2 + times)  # type: ignore[misc]
            os.kill(workers(server)[-1], signal.SIGKILL)
        until(lambda: "".join(server.said).count("ended by SIGKILL") == 6)
        ends = re.findall(r"worker \d+ ended by SIGKILL, another one takes its place(.*)", "".join(server.said))
        assert ends == ["", "", "", "", "", " in 1 s"]
        assert counted(server, "vaeserve_worker_ends_total") == 6
        until(lambda: listening(server) == 8)
        assert counted(server, "vaeserve_workers") == 2


def test_a_worker_that_cannot_start_any_more_does_not_end_those_that_serve(tmp_path: Path) -> None:
    bundle = tmp_path / "model"
    write_linear(bundle, linear())
    with serving([str(bundle), "--workers", "2"]) as server:
        shutil.move(bundle, tmp_path / "away")
        os.kill(workers(server)[0], signal.SIGKILL)
        expected = f"{bundle}: No such file or directory, expected a bundle, which is a folder or one zip"
        until(lambda: "".join(server.said).count(expected) >= 4)
        assert httpx.get(server.url + ASKED, timeout=WITHIN_S).status_code == 200
        shutil.move(tmp_path / "away", bundle)
        until(lambda: listening(server) == 3)
        assert counted(server, "vaeserve_workers") == 2
