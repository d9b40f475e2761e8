"""A load on a server by `wrk`, and what it did under it."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.servers import TICKS_PER_S, Request, Server

SCRIPT = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True)
class Load:
    """What one server did under one load.

    Units:  cpu_s_per_1k of the server and its workers alone; resident memory in 10⁶ bytes, at the end of the load;
            elsewhere_cores that neither the server nor wrk had, which a quiet machine has near 0
    """

    connections: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_s_per_1k: float
    resident_mb: float
    elsewhere_cores: float
    answers: int
    errors: int


def load(server: Server, requests: Sequence[Request], *, connections: int, seconds: float) -> Load:
    """What a server does while so many clients each send one request after another, the requests going round.

    Raises:  RuntimeError if nothing was answered well
    """
    with TemporaryDirectory() as folder:
        words = [word for place, request in enumerate(requests) for word in _words(request, Path(folder) / f"{place}")]
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout=30s", "-s", str(SCRIPT)]
        began_s, server_s, ours_s = _busy_s(), server.cpu_s(), _ours_s()
        told = subprocess.run(
            [*command, server.url("/"), "--", *words],
            check=True,
            capture_output=True,
            text=True,
            timeout=seconds + 60,
        )
        cpu_s = server.cpu_s() - server_s
        elsewhere_s = _busy_s() - began_s - cpu_s - (_ours_s() - ours_s)
    counted = json.loads(told.stdout.partition("COUNTED ")[2])
    return of_counts(
        counted, connections=connections, cpu_s=cpu_s, elsewhere_s=elsewhere_s, resident_mb=server.resident_mb()
    )


def of_counts(
    counted: Mapping[str, int], *, connections: int, cpu_s: float, elsewhere_s: float, resident_mb: float
) -> Load:
    """A load from wrk's counts: only good answers count as requests.

    Raises:  RuntimeError if there was none
    """
    good = counted["answers"] - counted["not_2xx"]
    if good <= 0:
        raise RuntimeError(f"got no good answer at c = {connections} but {dict(counted)}, expected some")
    seconds = counted["duration_us"] / 1e6
    return Load(
        connections=connections,
        requests_per_s=round(good / seconds, 2),
        p50_ms=counted["p50_us"] / 1000,
        p99_ms=counted["p99_us"] / 1000,
        cpu_s_per_1k=round(1000 * cpu_s / good, 4),
        resident_mb=round(resident_mb, 1),
        elsewhere_cores=round(max(0.0, elsewhere_s) / seconds, 2),
        answers=counted["answers"],
        errors=counted["not_2xx"] + counted["socket_errors"],
    )


def _words(request: Request, file: Path) -> tuple[str, str, str]:
    if not request.body:
        return request.path, "", ""
    file.write_bytes(request.body)
    return request.path, request.content_type, str(file)


def _busy_s() -> float:
    """CPU seconds that this machine has worked, those that a hypervisor took included (proc_stat(5))."""
    user, nice, system, _idle, _iowait, *others = map(
        int, Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
    )
    return (user + nice + system + sum(others)) / TICKS_PER_S


def _ours_s() -> float:
    """CPU seconds of this process and of wrk each time that it has ended."""
    return sum(os.times()[:4])
