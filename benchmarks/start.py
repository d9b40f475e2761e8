"""How fast `vae-serve` is ready and how much memory it holds; with --environment, how large its environment is.

Run as `python -m benchmarks.start [--model NAME] [--environment]`.
"""

import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import claims, requests, results, subjects
from benchmarks.claims import Claim
from benchmarks.servers import ROOT, repeated, running, serve_command
from benchmarks.subjects import Subject

REQUESTS = 10_000
CONNECTIONS = 16
SHIPPED = "fashion"


def main() -> None:
    """Measure, print a table, keep the figures as JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=subjects.NAMES, default=SHIPPED, help=f"default {SHIPPED}")
    parser.add_argument("--starts", type=int, default=5, help="times that the service is started (default 5)")
    parser.add_argument("--environment", action="store_true", help="also install .[cpu] afresh, and measure the disk")
    arguments = parser.parse_args()
    subject = subjects.subject(arguments.model)
    measured: dict[str, Any] = {"bundle": subject.name, "requests": REQUESTS}
    measured["ready_s"], measured["ready_mb"] = _starts(subject, arguments.starts)
    measured["loaded_mb"] = _loaded(subject)
    rows = [
        ("seconds to the first 200 on /health/ready, median", f"{median(measured['ready_s']):.2f}"),
        ("every start, in order", ", ".join(f"{seconds:.2f}" for seconds in measured["ready_s"])),
        ("memory MB when ready, largest", f"{max(measured['ready_mb']):.0f}"),
        (f"memory MB after {REQUESTS:,} requests", f"{measured['loaded_mb']:.0f}"),
    ]
    if arguments.environment:
        measured["environment_mb"] = _environment()
        rows += [(f"MB on disk: {name}", f"{size:.0f}") for name, size in measured["environment_mb"].items()]
    print(f"vae-serve with {subject.name}, {results.on_machine()}\n")
    if subject.name == SHIPPED:
        held = claimed(measured["ready_s"])
        measured["claims"] = claims.as_json(held)
        print(claims.table(held) + "\n")
    print(results.table(("what", "figure"), rows))
    lacks = ({SHIPPED} - {subject.name}) | ({"environment_mb"} - measured.keys())
    print("\n" + results.keep("start", measured, lacks=lacks))


def claimed(ready_s: Sequence[float]) -> list[Claim]:
    """What must hold of the shipped model on a CPU."""
    return [Claim("seconds until ready, median", "≤", 1, median(ready_s), f"{len(ready_s)} starts")]


def _starts(subject: Subject, times: int) -> tuple[list[float], list[float]]:
    """Seconds until ready, and resident memory then, of each start."""
    ready_s, resident_mb = [], []
    for _ in range(times):
        with running(serve_command(subject.bundle)) as server:
            ready_s.append(round(server.ready_s, 3))
            resident_mb.append(round(server.resident_mb(), 1))
    return ready_s, resident_mb


def _loaded(subject: Subject) -> float:
    """Resident memory after many requests, several at once."""
    with running(serve_command(subject.bundle)) as server:
        server.answers(repeated(requests.encode(subject), REQUESTS), connections=CONNECTIONS)
        return round(server.resident_mb(), 1)


def _environment() -> dict[str, float]:
    """10⁶ bytes on disk of an environment with `.[cpu]` as locked, pip included, and of its largest parts."""
    with TemporaryDirectory() as folder:
        home = Path(folder) / "environment"
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        pip = [str(home / "bin" / "pip"), "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*pip, "--constraint", str(ROOT / "locks" / "cpu.txt"), f"{ROOT}[cpu]"], check=True)
        (packages,) = home.glob("lib/python*/site-packages")
        sizes = {part.name: _disk_mb(part) for part in packages.iterdir() if part.is_dir()}
        largest = sorted(sizes.items(), key=lambda part: -part[1])[:5]
        return {"the whole environment": _disk_mb(home), **dict(largest)}


def _disk_mb(folder: Path) -> float:
    blocks = sum(file.lstat().st_blocks for file in folder.rglob("*"))
    return round(blocks * 512 / 1e6, 1)  # st_blocks counts 512 bytes whatever the disk's own blocks are


if __name__ == "__main__":
    main()
