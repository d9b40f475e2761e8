"""`vae-serve` against a plain FastAPI handler, one picture a request, side by side: ratios first, then figures.

Run as `python -m benchmarks.serving [BUNDLE]`.
"""

import json
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from benchmarks import results
from benchmarks.servers import SHIPPED_BUNDLE, Server, plain_command, repeated, running, serve_command

PNG = "image/png"
SCRIPT = Path(__file__).with_name("post.lua")
ALLOWED_DIFFERENCE = 1e-4

NAMES = ("vae-serve", "plain handler")


@dataclass(frozen=True)
class Load:
    """What one server did under one load.

    Units:  cpu_s_per_1k of the server alone; resident memory in 10⁶ bytes, at the end of the load
    """

    connections: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_s_per_1k: float
    resident_mb: float
    answers: int
    errors: int


def main() -> None:
    """Measure, print tables, keep the figures as JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path, default=SHIPPED_BUNDLE)
    parser.add_argument("--rounds", type=int, default=3, help="times that each server is started (default 3)")
    parser.add_argument("--seconds", type=int, default=6, help="length of a load (default 6)")
    parser.add_argument("--connections", type=int, default=64, help="clients at once (default 64); 1 is measured too")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("serving: wrk, which makes the load, is not installed: apt-get install -y wrk")
    bundle: Path = arguments.bundle.resolve()
    pictures = probe_pictures(bundle)
    loads: dict[str, list[dict[int, Load]]] = {name: [] for name in NAMES}
    largest = 0.0
    lengths_s = {arguments.connections: arguments.seconds, 1: max(1, arguments.seconds // 2)}
    for turn in range(arguments.rounds):
        answers: dict[str, NDArray[np.float64]] = {}
        for name in NAMES if turn % 2 == 0 else NAMES[::-1]:
            print(f"round {turn + 1} of {arguments.rounds}: {name}", file=sys.stderr)
            with _server(name, bundle) as server:
                # As many at once as under load, so that the rows compared have been in batches.
                answers[name] = _posteriors(server, pictures, connections=arguments.connections)
                _load(server, pictures, connections=arguments.connections, seconds=1)
                turns = {c: _load(server, pictures, connections=c, seconds=length) for c, length in lengths_s.items()}
                loads[name].append(turns)
        largest = max(largest, _difference(answers))
    _report(bundle, loads, largest, connections=arguments.connections)


def probe_pictures(bundle: Path) -> list[bytes]:
    """The pictures of a bundle's probe as PNG files."""
    files = []
    for picture in load_file(bundle / "probe.safetensors")["image"]:
        file = BytesIO()
        Image.fromarray(picture.squeeze()).save(file, "PNG")
        files.append(file.getvalue())
    return files


def _server(name: str, bundle: Path) -> AbstractContextManager[Server]:
    if name == "vae-serve":
        return running(serve_command(bundle))
    return running(plain_command(), environment={"BUNDLE": str(bundle)})


def _posteriors(server: Server, pictures: Sequence[bytes], *, connections: int) -> NDArray[np.float64]:
    """mu and logvar that a server answers, each picture asked several times at once.

    Shapes:  -> (2, n, latent_dim)
    """
    sent = repeated(pictures, max(4 * connections, len(pictures)))
    answers = server.post_all(sent, path="/encode", content_type=PNG, connections=connections)
    documents = [json.loads(answer) for answer in answers]
    return np.array([[np.ravel(document[name]) for document in documents] for name in ("mu", "logvar")])


def _difference(answers: Mapping[str, NDArray[np.float64]]) -> float:
    """The largest difference between the servers' answers to the same pictures."""
    ours, theirs = (answers[name] for name in NAMES)
    largest = float(np.abs(ours - theirs).max())
    if not largest <= ALLOWED_DIFFERENCE:
        sys.exit(f"serving: answers differ by {largest:.3g}, expected at most {ALLOWED_DIFFERENCE:g}")
    return largest


def _load(server: Server, pictures: Sequence[bytes], *, connections: int, seconds: int) -> Load:
    """What a server does while so many clients each post one picture after another."""
    with TemporaryDirectory() as folder:
        files = [Path(folder) / f"{place}.png" for place in range(len(pictures))]
        for file, picture in zip(files, pictures, strict=True):
            file.write_bytes(picture)
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout=30s", "-s", str(SCRIPT)]
        before_s = server.cpu_s()
        told = subprocess.run(
            [*command, server.url("/encode"), "--", PNG, *map(str, files)],
            check=True,
            capture_output=True,
            text=True,
            timeout=seconds + 60,
        )
        cpu_s = server.cpu_s() - before_s
    counted = json.loads(told.stdout.partition("COUNTED ")[2])
    good = counted["answers"] - counted["not_2xx"]
    return Load(
        connections=connections,
        requests_per_s=round(good / counted["duration_us"] * 1e6, 1),
        p50_ms=counted["p50_us"] / 1000,
        p99_ms=counted["p99_us"] / 1000,
        cpu_s_per_1k=round(1000 * cpu_s / max(1, good), 4),
        resident_mb=round(server.resident_mb(), 1),
        answers=counted["answers"],
        errors=counted["not_2xx"] + counted["socket_errors"],
    )


def _report(
    bundle: Path, loads: Mapping[str, Sequence[Mapping[int, Load]]], largest: float, *, connections: int
) -> None:
    ratios = {
        f"requests/s at c = {connections}": _ratios(loads, connections, "requests_per_s"),
        f"p99 at c = {connections}": _ratios(loads, connections, "p99_ms"),
        f"CPU seconds a request at c = {connections}": _ratios(loads, connections, "cpu_s_per_1k"),
        "p50 at c = 1": _ratios(loads, 1, "p50_ms"),
    }
    rows = [_row(name, [turn[c] for turn in loads[name]]) for c in (connections, 1) for name in NAMES]
    manifest = json.loads((bundle / "manifest.json").read_text())
    print(f"POST /encode, one PNG a request, JSON out; {manifest['name']}@{manifest['digest'][:12]}")
    print(f"{results.on_machine()}; load by wrk on the same cores, over loopback\n")
    print(
        results.table(
            ("vae-serve : plain handler", "median", "rounds"),
            [(name, f"{median(found):.2f}", ", ".join(f"{r:.2f}" for r in found)) for name, found in ratios.items()],
        )
    )
    head = ("median of rounds", "c", "requests/s", "p50 ms", "p99 ms", "CPU s/1k", "resident MB", "errors")
    print("\n" + results.table(head, rows))
    print(f"\nLargest difference between the servers' mu and logvar: {largest:.1g}")
    kept = results.write(
        "serving",
        {
            "bundle": {"name": manifest["name"], "digest": manifest["digest"]},
            "ratios": ratios,
            "largest_difference": largest,
            "rounds": {name: [[asdict(load) for load in turn.values()] for turn in loads[name]] for name in NAMES},
        },
    )
    print(f"Kept in {kept.relative_to(Path.cwd()) if kept.is_relative_to(Path.cwd()) else kept}")


def _ratios(loads: Mapping[str, Sequence[Mapping[int, Load]]], connections: int, figure: str) -> list[float]:
    """Ours over theirs, round by round."""
    pairs = zip(*(loads[name] for name in NAMES), strict=True)
    found = ((getattr(ours[connections], figure), getattr(theirs[connections], figure)) for ours, theirs in pairs)
    return [round(ours / theirs, 3) for ours, theirs in found]


def _row(name: str, turns: Sequence[Load]) -> tuple[str, ...]:
    def middle(figure: str) -> Any:
        return median(getattr(turn, figure) for turn in turns)

    return (
        name,
        str(turns[0].connections),
        f"{middle('requests_per_s'):,.0f}",
        f"{middle('p50_ms'):.2f}",
        f"{middle('p99_ms'):.2f}",
        f"{middle('cpu_s_per_1k'):.3f}",
        f"{middle('resident_mb'):.0f}",
        str(sum(turn.errors for turn in turns)),
    )


if __name__ == "__main__":
    main()
