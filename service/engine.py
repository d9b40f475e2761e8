"""The graphs of one bundle: loaded on a stated device, proven on the bundle's probe, warmed."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from time import perf_counter, process_time, thread_time
from typing import Literal

import numpy as np

from service import bf16, proof
from service.bundle import BadBundle, Bundle
from service.graph import Arrays, Device, Graph, RowShape, Signature, offered, resolve_device
from service.machine import BadEngine, available_cores, cpu_flags
from service.manifest import DECODER, ENCODER, MANIFEST, SCORER, Manifest

Precision = Literal["fp32", "bf16", "auto"]

# A graph whose row takes less CPU than this runs on one thread: more would wait for each other longer than they work.
_SMALL_ROW_US = 250.0

# A graph of a larger row that no more than so many bytes describe is held a second time, on one thread.
_HELD_TWICE_BYTES = 64 * 2**20

# Where each core runs rows of its own, a run is no longer than this: a large graph gains nothing by more rows, its
# caches lose, and answers that leave one after the other keep the event loop as busy as the cores.
_DEALT_RUN_US = 30_000.0

# Costs are measured on a few rows, in a few quick runs or one long one. Not every long run is one: other processes may
# have had the core.
_COST_ROWS = 8
_COST_TRIES = 5
_COST_US = 30_000.0

# OpenVINO prepares itself for each batch size at its first run, which takes it some milliseconds. Batches of up to so
# many rows come in every size, so each has its first run at the start, unless rows take so long that it is as nothing.
_EVERY_SIZE_ROWS = 32
_SLOW_ROW_US = 4_000.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What a graph takes, measured: a part for each run and a part for each of its rows, of the default size.

    Units:  microseconds by the clock; row_cpu_us of CPU, of all threads together
    """

    run_us: float
    row_us: float
    row_cpu_us: float


def signatures(image_shape: RowShape, latent_shape: RowShape, *, family: str) -> dict[str, Signature]:
    """What each graph of a bundle must take and give, by its file's name."""
    image, latent = ("uint8", image_shape), ("float32", latent_shape)
    posterior = {"mu": latent} if family == "autoencoder" else {"mu": latent, "logvar": latent}
    return {
        ENCODER: Signature({"image": image}, posterior),
        DECODER: Signature({"z": latent}, {"image": image}),
        SCORER: Signature({"image": image, "z": latent}, {"log_likelihood": ("float32", ())}),
    }


def rows_of_a_run(pixels: int, *, max_batch_rows: int, max_run_pixels: int) -> int:
    """How many rows of so many pixels each may run together; one, however large."""
    return min(max_batch_rows, max(1, max_run_pixels // pixels))


class Engine:
    """The graphs of one bundle on one device. With `threads` 0 each graph takes one thread if its rows are small, else
    as many as there are `cores`, which are by default all that this process may use; unless such a graph is very large
    or its sizes are open, `singles` has it on one thread too. With `in_bf16` encoder and decoder run in bf16; a scorer
    stays as it is, as it does in bundles below fp32; `remark`, what a person should know of the precision, then says
    how far they are from the probe. What its graphs cost is known once it is warm.

    Raises:  BadBundle if a graph or the probe's answers are not what the manifest says, BadEngine if the
             device or bf16 cannot be had
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: Device,
        threads: int,
        cores: int | None = None,
        in_bf16: bool = False,
        remark: str = "",
    ) -> None:
        self.manifest = manifest = bundle.manifest
        self.device = resolve_device(device)
        if in_bf16:
            bf16.require(device=self.device, graphs=manifest.precision, providers=offered(), cpu_flags=cpu_flags())
        self.precision = "bf16" if in_bf16 else manifest.precision
        graphs = _Graphs(bundle, device=self.device, threads=threads, cores=cores or available_cores())
        hint: bf16.Hint | None = "bf16" if in_bf16 else None
        hints = {ENCODER: hint, DECODER: hint} | ({SCORER: None} if bundle.scorer else {})
        made = {name: graphs.suited(name, hint=hint) for name, hint in hints.items()}
        self.singles = {name: single for name, (_, single) in made.items() if single}
        self.graphs = {name: graph for name, (graph, _) in made.items()}
        self.encoder, self.decoder, self.scorer = self.graphs[ENCODER], self.graphs[DECODER], self.graphs.get(SCORER)
        opset = max(graph.opset for graph in self.graphs.values())
        if opset != manifest.opset:
            raise BadBundle(f"{bundle.path / MANIFEST}: opset is {manifest.opset}, its graphs have {opset}")
        for name, graph in (*self.graphs.items(), *self.singles.items()):
            proof.require(bundle, name, graph)
        self.remark = remark
        if in_bf16:
            exact = graphs.on_threads(self.encoder.threads, ENCODER, hint="f32")
            self.remark = proof.measured_in_bf16(bundle.probe, encoder=self.encoder, decoder=self.decoder, exact=exact)
        self.costs: dict[str, Cost] = {}

    @property
    def threads(self) -> int:
        """Threads of a run of the graph that takes most."""
        return max(graph.threads for graph in self.graphs.values())

    @property
    def provider(self) -> str:
        """onnxruntime's name of what really runs the graphs."""
        return self.encoder.provider

    def warm(self, max_batch_rows: int, max_run_pixels: int) -> None:
        """Run every graph at the sizes that batches take, so that no request pays for a first time, and measure what it
        costs; where sizes are open, on pictures of the default one.

        Raises:  BadBundle if a graph does not take such a number of rows
        """
        height, width, _ = self.manifest.image.default_shape
        allowed = rows_of_a_run(height * width, max_batch_rows=max_batch_rows, max_run_pixels=max_run_pixels)
        sizes = [2**power for power in range(allowed.bit_length())]
        few = [rows for rows in sizes if rows <= _COST_ROWS]
        for name, graph in self.graphs.items():
            if name in self.singles:
                self._try(name, graph, range(1, min(allowed, graph.threads - 1) + 1))  # more are dealt to the cores
            batched = self.singles.get(name, graph)
            self._try(name, batched, few)
            self.costs[name] = self._cost(name, batched, rows=few[-1])
            most = min(allowed, self.most_rows(name))
            self._try(name, batched, [rows for rows in sizes[len(few) :] if rows <= most])
            if batched.hint and self.costs[name].row_us < _SLOW_ROW_US:
                self._try(name, batched, sorted(set(range(1, 1 + min(most, _EVERY_SIZE_ROWS))) - set(sizes)))

    def most_rows(self, name: str) -> int:
        """How many rows of the default size a run of a graph is worth taking, as far as its cost says."""
        row_us = self.costs[name].row_us
        return max(1, int(_DEALT_RUN_US / row_us)) if name in self.singles and row_us else sys.maxsize

    def blank(self, name: str, rows: int) -> Arrays:
        """Inputs of a graph that it has run before it served: rows of the default size, all zero."""
        return _blank(self.manifest, name, rows)

    def _try(self, name: str, graph: Graph, sizes: Iterable[int]) -> None:
        """Run a graph at these numbers of rows.

        Raises:  BadBundle
        """
        for rows in sizes:
            graph.tried(*self.blank(name, rows))

    def _cost(self, name: str, graph: Graph, *, rows: int) -> Cost:
        """What a graph costs, from runs of one row and of a few."""
        one_us, cpu_us = _time_us(graph, self.blank(name, 1))
        if rows == 1:
            return Cost(0.0, one_us, cpu_us)
        all_us, all_cpu_us = _time_us(graph, self.blank(name, rows))
        row_us = max(0.0, all_us - one_us) / (rows - 1)
        return Cost(max(0.0, one_us - row_us), row_us, all_cpu_us / rows)


def start(bundle: Bundle, *, device: Device, threads: int, precision: Precision, cores: int | None = None) -> Engine:
    """An engine of the precision that was asked for; with `auto` one in bf16 if all is as it must be, else one in the
    bundle's own precision, whose remark says why.

    Raises:  BadBundle, BadEngine
    """
    if precision == "fp32":
        return Engine(bundle, device=device, threads=threads, cores=cores)
    try:
        return Engine(bundle, device=device, threads=threads, cores=cores, in_bf16=True)
    except (BadBundle, BadEngine) as refused:
        if precision == "bf16":
            raise BadEngine(f"precision bf16: {refused}") from refused
        return Engine(bundle, device=device, threads=threads, cores=cores, remark=f"not bf16: {refused}")


class _Graphs:
    """Makes the graphs of a bundle, for a device and for so many cores; `threads` 0 leaves it to each graph's rows how
    many it takes of them.
    """

    def __init__(self, bundle: Bundle, *, device: Literal["cpu", "cuda"], threads: int, cores: int) -> None:
        self._manifest = manifest = bundle.manifest
        self._path = bundle.path
        self._device = device
        self._threads, self._cores = threads, cores
        self._signatures = signatures(manifest.image.shape, manifest.latent_shape, family=manifest.family)
        self._contents = {ENCODER: bundle.encoder, DECODER: bundle.decoder, SCORER: bundle.scorer or b""}
        self._external = {SCORER: {DECODER: bundle.decoder}}

    def suited(self, name: str, *, hint: bf16.Hint | None) -> tuple[Graph, Graph | None]:
        """A graph on as many threads as suit it, and where its rows are also to be dealt to the cores the same on one.

        Raises:  BadBundle, BadEngine
        """
        most_threads = self._threads or self._cores
        if self._device != "cpu" or most_threads == 1 or self._threads or self._size_bytes(name) > _HELD_TWICE_BYTES:
            return self.on_threads(most_threads, name, hint=hint), None
        # What a row takes is clearest on one thread: several use CPU while they wait for each other too.
        single = self.on_threads(1, name, hint=hint)
        if _time_us(single, _blank(self._manifest, name, 1))[1] < _SMALL_ROW_US:
            return single, None
        return self.on_threads(most_threads, name, hint=hint), None if self._manifest.image.is_open else single

    def on_threads(self, count: int, name: str, *, hint: bf16.Hint | None) -> Graph:
        """A graph on so many threads.

        Raises:  BadBundle, BadEngine
        """
        return Graph(
            self._contents[name],
            self._signatures[name],
            path=self._path / name,
            device=self._device,
            threads=count,
            is_fp32=self._manifest.precision == "fp32",
            external=self._external.get(name),
            hint=hint,
            runs=max(1, self._cores // count),
        )

    def _size_bytes(self, name: str) -> int:
        return sum(map(len, (self._contents[name], *self._external.get(name, {}).values())))


def _blank(manifest: Manifest, name: str, rows: int) -> Arrays:
    """Inputs of a graph, all zero, of the default size."""
    image_shape = manifest.image.default_shape
    image = np.zeros((rows, *image_shape), np.uint8)
    z = np.zeros((rows, *manifest.latent_shape_of(*image_shape[:2])), np.float32)
    blank: dict[str, Arrays] = {ENCODER: (image,), DECODER: (z,), SCORER: (image, z)}
    return blank[name]


def _time_us(graph: Graph, inputs: Arrays) -> tuple[float, float]:
    """What a run takes, by the clock and in CPU of all threads, at its quickest; a long one is run but once.

    Raises:  BadBundle if the graph fails
    """
    # A graph of one thread runs in this one, where nobody else's work counts: others may be served meanwhile.
    cpu_time = thread_time if graph.threads == 1 and not graph.hint else process_time
    times, spent = [], []
    for _ in range(_COST_TRIES):
        began, used = perf_counter(), cpu_time()
        graph.tried(*inputs)
        times.append(1e6 * (perf_counter() - began))
        spent.append(1e6 * (cpu_time() - used))
        if sum(times) > _COST_US:
            break
    return min(times), min(spent)
