"""What onnxruntime alone does with a bundle's graphs on all cores, and what PNGs of grids take: the limits.

Run as `python -m benchmarks.raw BUNDLE`; prints JSON.
"""

import json
import os
import subprocess
import sys
import threading
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.requests import SAMPLE_ROWS
from benchmarks.servers import ROOT
from service import rendering

BATCH_ROWS = (8, 32, 64, 256)
GRAPHS = ("encoder", "decoder")
CORES = len(os.sched_getaffinity(0))

_GRIDS = 100


def main() -> None:
    """Measure, print."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--graphs", nargs="+", choices=GRAPHS, default=GRAPHS)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each setting and batch size (default 0.5)")
    arguments = parser.parse_args()
    found = {graph: _rates(arguments.bundle, graph, arguments.seconds) for graph in arguments.graphs}
    print(json.dumps({"rows_per_s": found, "grid_png_s": _grid_png_s(arguments.bundle)}))


@dataclass(frozen=True)
class Limits:
    """Rows/s of graphs, by setting and batch size, and seconds that one thread takes to write a grid as PNG."""

    rows_per_s: Mapping[str, Mapping[str, Mapping[str, float]]]
    grid_png_s: float

    def best(self, graph: str) -> float:
        """Rows/s at the best setting and batch size."""
        return max(rate for by_rows in self.rows_per_s[graph].values() for rate in by_rows.values())


def limits(bundle: Path, graphs: Iterable[str], *, seconds: float) -> Limits:
    """What a process of its own finds."""
    command = [sys.executable, "-m", "benchmarks.raw", str(bundle), "--seconds", str(seconds), "--graphs", *graphs]
    told = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    return Limits(**json.loads(told))


def _rates(bundle: Path, graph: str, seconds: float) -> dict[str, dict[str, float]]:
    """Rows/s by setting and batch size."""
    rows = _noise(bundle, graph)
    settings: dict[str, tuple[ort.InferenceSession, int]] = {
        f"{CORES} threads": (session(bundle, graph, threads=CORES, spinning=False), 1),
        f"{CORES} threads, spinning": (session(bundle, graph, threads=CORES, spinning=True), 1),
        f"{CORES} callers of one thread": (session(bundle, graph, threads=1, spinning=False), CORES),
    }
    return {
        name: {str(n): round(n * _runs_per_s(_run(alone, rows[:n]), callers, seconds), 1) for n in BATCH_ROWS}
        for name, (alone, callers) in settings.items()
    }


def session(bundle: Path, graph: str, *, threads: int, spinning: bool) -> ort.InferenceSession:
    """A graph on the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return ort.InferenceSession(bundle / f"{graph}.onnx", options, providers=["CPUExecutionProvider"])


def _noise(bundle: Path, graph: str) -> NDArray[Any]:
    """As many inputs as the largest batch has, of noise."""
    rng = np.random.default_rng(0)
    shape = session(bundle, graph, threads=1, spinning=False).get_inputs()[0].shape[1:]
    if graph == "encoder":
        return rng.integers(0, 256, (max(BATCH_ROWS), *shape), dtype=np.uint8)
    return rng.standard_normal((max(BATCH_ROWS), *shape), dtype=np.float32)


def _run(alone: ort.InferenceSession, rows: NDArray[Any]) -> Callable[[], object]:
    named = {alone.get_inputs()[0].name: rows}
    return lambda: alone.run(None, named)


def _grid_png_s(bundle: Path) -> float:
    """CPU seconds of a grid of as many pictures as `/sample` is asked for, median of many."""
    decoder = session(bundle, "decoder", threads=1, spinning=False)
    (shown,) = decoder.run(None, {"z": _noise(bundle, "decoder")[:SAMPLE_ROWS]})
    taken = []
    for _ in range(_GRIDS):
        began = thread_time()
        rendering.render(shown, "png", columns=rendering.near_square(len(shown)), scale=1, quality=0, frame_ms=0)
        taken.append(thread_time() - began)
    return median(taken)


def _runs_per_s(run: Callable[[], object], callers: int, seconds: float) -> float:
    """Runs a second of so many threads together, for about so long."""
    run()
    counts = [0] * callers
    began = perf_counter()

    def work(caller: int) -> None:
        while perf_counter() - began < seconds:
            run()
            counts[caller] += 1

    threads = [threading.Thread(target=work, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (perf_counter() - began)


if __name__ == "__main__":
    main()
