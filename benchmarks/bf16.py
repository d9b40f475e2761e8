"""What bf16 gains and loses: graphs in onnxruntime's default provider, in OpenVINO in fp32, and there in bf16, in turn.

Run as `python -m benchmarks.bf16 [--models small …]` by an environment with `vaeserve[openvino]`, after
`python -m benchmarks.serving` has made the bundles. Graphs are loaded as the service loads them.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter, thread_time
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks import results, subjects
from benchmarks.subjects import Name, Subject
from service import bf16, differences
from service.bundle import Bundle, read
from service.engine import signatures
from service.graph import Graph
from service.manifest import DECODER, ENCODER

WAYS: Mapping[str, bf16.Hint | None] = {"default": None, "OpenVINO fp32": "f32", "OpenVINO bf16": "bf16"}
ROWS = (1, 8, 32)
THREADS = (1, 2)

_MOST_ROWS = max(ROWS)
# Those that `benchmarks.serving` makes, and the shipped one.
_MODELS: tuple[Name, ...] = ("small", "medium", "fashion")
_SIZES = range(1, _MOST_ROWS + 1)
_LEAST_TURNS = 5
_SWITCHES, _BATCHES = 100, 30


@dataclass(frozen=True)
class Speed:
    """Microseconds of a run by way, at its quickest, since what else a machine does only makes it longer."""

    model: str
    graph: str
    threads: int
    rows: int
    run_us: Mapping[str, float]

    def gain(self, way: str) -> float:
        """How many times as fast as the default provider."""
        return self.run_us["default"] / self.run_us[way]


@dataclass(frozen=True)
class Sizes:
    """What batch sizes cost in bf16: the first run of each beyond a later one, a run after one of another size beyond
    one after its like, and batches of random sizes, beside the same padded to the sizes that are named.

    Units:  of CPU, as all runs in the calling thread; first_ms median over all sizes, switch_us at eight rows; padded
            how many times as much as unpadded
    """

    model: str
    graph: str
    first_ms: float
    switch_us: float
    padded_to_powers_of_two: float
    padded_to_multiples_of_four: float


@dataclass(frozen=True)
class Loss:
    """How far bf16 is from the probe, and fp32 in the same provider."""

    model: str
    mu_in_sigma: float
    mu_in_sigma_fp32: float
    psnr_db: float


def main() -> None:
    """Measure, print tables, keep the figures as JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=subjects.NAMES, default=_MODELS)
    parser.add_argument("--seconds", type=float, default=0.6, help="for each graph, threads and rows (default 0.6)")
    arguments = parser.parse_args()
    if bf16.PROVIDER not in ort.get_available_providers():
        sys.exit(f"bf16: onnxruntime has no {bf16.PROVIDER}; run this in an environment with vaeserve[openvino]")
    found = [subjects.subject(name) for name in arguments.models]
    speeds = [speed for subject in found for speed in _speeds(subject, seconds=arguments.seconds)]
    sizes = [_sizes(subject, graph) for subject in found for graph in (ENCODER, DECODER)]
    losses = [_loss(subject) for subject in found]
    print(f"{results.on_machine()}, onnxruntime-openvino {ort.__version__}\n")
    print(results.table(("model", "graph", "threads", "rows", *_SPEED_HEAD), [_speed_row(one) for one in speeds]))
    print("\n" + results.table(_SIZES_HEAD, [_sizes_row(one) for one in sizes]))
    print("\n" + results.table(_LOSS_HEAD, [_loss_row(one) for one in losses]))
    measured: dict[str, list[Any]] = {"speeds": speeds, "sizes": sizes, "losses": losses}
    content = {name: [asdict(one) for one in each] for name, each in measured.items()}
    print("\n" + results.keep("bf16", content, lacks=set(_MODELS) - set(arguments.models)))


def _speeds(subject: Subject, *, seconds: float) -> Iterator[Speed]:
    """Every graph on one thread and on two, at few rows and many."""
    bundle = read(subject.bundle)
    for graph in (ENCODER, DECODER):
        given = _inputs(bundle, graph)
        for threads in THREADS:
            ways = {way: _loaded(bundle, graph, threads=threads, hint=hint) for way, hint in WAYS.items()}
            for rows in ROWS:
                run_us = _in_turn({way: _run(made, given[:rows]) for way, made in ways.items()}, seconds=seconds)
                yield Speed(subject.name, _short(graph), threads, rows, run_us)


def _sizes(subject: Subject, graph: str) -> Sizes:
    """Batches of all sizes, on one thread."""
    bundle = read(subject.bundle)
    made, given = _loaded(bundle, graph, threads=1, hint="bf16"), _inputs(bundle, graph)
    first, *later = ([_cpu_us(_run(made, given[:rows])) for rows in _SIZES] for _ in range(4))
    eight, nine = _run(made, given[:8]), _run(made, given[:9])

    def after_another() -> float:
        nine()
        return _cpu_us(eight)

    def after_its_like() -> float:
        eight()
        return _cpu_us(eight)

    turns = [(after_another(), after_its_like()) for _ in range(_SWITCHES)]
    batches = [int(rows) for rows in np.random.default_rng(0).integers(1, _MOST_ROWS + 1, _BATCHES)]
    paddings: Mapping[str, Callable[[int], int]] = {
        "none": lambda rows: rows,
        "powers of two": lambda rows: 1 << (rows - 1).bit_length(),
        "multiples of four": lambda rows: -(-rows // 4) * 4,
    }
    padded = _in_turn(
        {name: _sequence(made, given, [padding(rows) for rows in batches]) for name, padding in paddings.items()},
        seconds=0,
        taken_us=_cpu_us,
    )
    return Sizes(
        subject.name,
        _short(graph),
        first_ms=median(once - min(again) for once, *again in zip(first, *later, strict=True)) / 1e3,
        switch_us=median(another for another, _ in turns) - median(like for _, like in turns),
        padded_to_powers_of_two=padded["powers of two"] / padded["none"],
        padded_to_multiples_of_four=padded["multiples of four"] / padded["none"],
    )


def _loss(subject: Subject) -> Loss:
    """The probe in bf16."""
    bundle = read(subject.bundle)
    probe = bundle.probe

    def in_sigma(hint: bf16.Hint) -> float:
        mu = _loaded(bundle, ENCODER, threads=1, hint=hint).run(probe.image)[0]
        return float(differences.in_sigma(mu, probe.mu, probe.logvar).max())

    (image,) = _loaded(bundle, DECODER, threads=1, hint="bf16").run(probe.z)
    return Loss(subject.name, in_sigma("bf16"), in_sigma("f32"), differences.psnr_db(image, probe.decoded))


def _loaded(bundle: Bundle, graph: str, *, threads: int, hint: bf16.Hint | None) -> Graph:
    """A graph, as the service loads it."""
    manifest = bundle.manifest
    signature = signatures(manifest.image.shape, manifest.latent_shape, family=manifest.family)[graph]
    content = {ENCODER: bundle.encoder, DECODER: bundle.decoder}[graph]
    return Graph(content, signature, path=bundle.path / graph, device="cpu", threads=threads, hint=hint)


def _inputs(bundle: Bundle, graph: str) -> NDArray[Any]:
    """Rows of noise, as many as the largest batch has."""
    rng = np.random.default_rng(0)
    image_shape = bundle.manifest.image.default_shape
    if graph == ENCODER:
        return rng.integers(0, 256, (_MOST_ROWS, *image_shape), dtype=np.uint8)
    return rng.standard_normal((_MOST_ROWS, *bundle.manifest.latent_shape_of(*image_shape[:2])), dtype=np.float32)


def _run(graph: Graph, rows: NDArray[Any]) -> Callable[[], object]:
    return lambda: graph.run(rows)


def _sequence(graph: Graph, rows: NDArray[Any], batches: Sequence[int]) -> Callable[[], object]:
    """A batch of each size, one after the other."""
    runs = [_run(graph, rows[:size]) for size in batches]
    return lambda: [run() for run in runs]


def _wall_us(run: Callable[[], object]) -> float:
    began = perf_counter()
    run()
    return 1e6 * (perf_counter() - began)


def _cpu_us(run: Callable[[], object]) -> float:
    began = thread_time()
    run()
    return 1e6 * (thread_time() - began)


def _in_turn(
    runs: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    taken_us: Callable[[Callable[[], object]], float] = _wall_us,
) -> dict[str, float]:
    """Microseconds of each at its quickest of many turns; once unmeasured in each turn, as they share caches."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    began = perf_counter()
    while perf_counter() - began < seconds or len(taken[next(iter(runs))]) < _LEAST_TURNS:
        for name, run in runs.items():
            run()
            taken[name].append(taken_us(run))
    return {name: min(each) for name, each in taken.items()}


_SPEED_HEAD = ("bf16 : default", "OpenVINO fp32 : default", "rows/s default", "rows/s bf16", "bf16 µs a run")
_SIZES_HEAD = ("model", "graph", "to powers of two : unpadded", "to multiples of four : unpadded",
               "first run of a size, ms more", "run after another size, µs more")  # fmt: skip
_LOSS_HEAD = ("model", "mu in sigma, at most", "the same in fp32", "PSNR dB")


def _speed_row(one: Speed) -> tuple[str, ...]:
    default, reduced = one.run_us["default"], one.run_us["OpenVINO bf16"]
    return (
        one.model,
        one.graph,
        str(one.threads),
        str(one.rows),
        f"{one.gain('OpenVINO bf16'):.2f}",
        f"{one.gain('OpenVINO fp32'):.2f}",
        f"{1e6 * one.rows / default:,.0f}",
        f"{1e6 * one.rows / reduced:,.0f}",
        f"{reduced:,.0f}",
    )


def _sizes_row(one: Sizes) -> tuple[str, ...]:
    ratios = (f"{one.padded_to_powers_of_two:.2f}", f"{one.padded_to_multiples_of_four:.2f}")
    return one.model, one.graph, *ratios, f"{one.first_ms:.1f}", f"{one.switch_us:.0f}"


def _loss_row(one: Loss) -> tuple[str, ...]:
    return one.model, f"{one.mu_in_sigma:.2g}", f"{one.mu_in_sigma_fp32:.1g}", f"{one.psnr_db:.1f}"


def _short(graph: str) -> str:
    return graph.removesuffix(".onnx")


if __name__ == "__main__":
    main()
