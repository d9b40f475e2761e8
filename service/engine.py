"""onnxruntime sessions of one bundle: loaded on a stated device, proven on the bundle's probe, warmed."""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter, process_time, thread_time
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from service import bf16, differences, graph_file
from service.bundle import DECODER, ENCODER, MANIFEST, SCORER, AnyTolerance, BadBundle, Bundle, Tolerance
from service.errors import OutOfMemory
from service.machine import BadEngine, available_cores, cpu_flags
from service.stop import Stop

# onnxruntime's wheels for Linux send telemetry and write to the home directory unless told so before the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

# What allocators and libraries say of it: onnxruntime's arenas, CUDA, cuBLAS, cuDNN, OpenVINO.
_OUT_OF_MEMORY = re.compile(r"(?i)out of memory|failed to allocate|bad_alloc|alloc(ation)?[ _]failed")

# onnxruntime's arena doubles else, three of them for each bundle, and the search for a convolution's kernel, begun anew
# for each batch size, times all there are. TF32, its default, rounds inputs to 10 bits, where a proof lets 1e-4 pass.
_CUDA_OPTIONS = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
_EXACT = {"use_tf32": "0"}

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16", "auto"]
Arrays = tuple[NDArray[Any], ...]
RowShape = tuple[int | None, ...]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ORT_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}


# A graph whose row takes less CPU than this runs on one thread: more would wait for each other longer than they work.
_SMALL_ROW_US = 250.0


# A graph of a larger row that no more than so many bytes describe is held a second time, on one thread.
_HELD_TWICE_BYTES = 64 * 2**20


# Where each core runs rows of its own, a run is no longer than this: a large graph gains nothing by more rows, its
# caches lose, and answers that leave one after the other keep the event loop as busy as the cores.
_DEALT_RUN_US = 15_000.0


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


@dataclass(frozen=True)
class Signature:
    """Names, dtypes and row shapes of what a graph takes and gives; the batch axis is not in the shapes, and an axis
    that is free stands there as None.
    """

    inputs: dict[str, tuple[str, RowShape]]
    outputs: dict[str, tuple[str, RowShape]]


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


class Graph:
    """One ONNX graph, ready to run: inputs of rows, outputs of as many rows. Weights that lie in another file of the
    bundle come from `external`, by that file's name, and never from the disk. With a `hint` all of it runs in OpenVINO,
    up to `runs` at a time. On a GPU, what `is_fp32` computes in float32 as the CPU does.

    Raises:  BadBundle if no bundle may hold it, onnxruntime refuses it or its inputs and outputs are not those of the
             signature, BadEngine if the device was asked for and cannot be had
    """

    def __init__(
        self,
        content: bytes,
        signature: Signature,
        *,
        path: Path,
        device: Literal["cpu", "cuda"],
        threads: int,
        is_fp32: bool = True,
        external: Mapping[str, bytes] | None = None,
        hint: bf16.Hint | None = None,
        runs: int = 1,
    ) -> None:
        self.path = path
        self.hint = hint
        self.threads = threads
        external = external or {}
        self.opset = graph_file.checked(content, path=path, external=external).opset
        self.provider = bf16.PROVIDER if hint else _PROVIDERS[device]
        provider_options: dict[str, str] = {}
        if hint:
            provider_options = bf16.options(hint, threads=threads, runs=runs)
        elif device == "cuda":
            provider_options = _CUDA_OPTIONS | (_EXACT if is_fp32 else {})
        options = _session_options(threads, external, in_openvino=hint is not None)
        try:
            # With its fallback a run that fails on the device would go on elsewhere, for good and without a word.
            self._session = ort.InferenceSession(
                content, options, providers=[(self.provider, provider_options)], enable_fallback=False
            )
        except Exception as error:  # onnxruntime's own exception classes share no public base
            if device == "cuda" and isinstance(error, RuntimeError | ValueError):  # which are what it falls back upon
                raise BadEngine(f"device {device}: {self.provider} did not start ({_first_line(error)})") from error
            who = "OpenVINO" if hint else "onnxruntime"
            raise BadBundle(f"{path}: {who} refuses it ({_first_line(error)})") from error
        if self._session.get_providers()[0] != self.provider:
            raise BadEngine(f"device {device}: {self.provider} did not start, onnxruntime fell back to another")
        _check(path, "inputs", signature.inputs, self._session.get_inputs())
        _check(path, "outputs", signature.outputs, self._session.get_outputs())
        self._signature = signature
        self._inputs = list(signature.inputs)
        self.outputs = list(signature.outputs)

    def run(self, *inputs: NDArray[Any], stop: Stop | None = None) -> Arrays:
        """The outputs for any number of rows; both in the signature's order. With `stop` the run can be ended.

        Raises:  OutOfMemory if the device has no memory for so many rows
        """
        named = dict(zip(self._inputs, inputs, strict=True))
        options = None if stop is None else _ending(stop)
        try:
            return tuple(cast("list[NDArray[Any]]", self._session.run(self.outputs, named, options)))
        except Exception as error:  # as in __init__
            if _OUT_OF_MEMORY.search(str(error)):
                rows = len(inputs[0])
                raise OutOfMemory(f"{self.path.name}: the device has no memory for {rows} rows now") from error
            raise

    def tried(self, *inputs: NDArray[Any]) -> Arrays:
        """As `run`, before the graph is trusted.

        Raises:  BadBundle if the graph fails, its outputs have another shape than the signature says or are no numbers
        """
        rows = len(inputs[0])
        try:
            outputs = self.run(*inputs)
        except Exception as error:  # as in __init__
            raise BadBundle(f"{self.path}: fails on {rows} rows ({_first_line(error)})") from error
        for (name, (_, row_shape)), output in zip(self._signature.outputs.items(), outputs, strict=True):
            if not _fits(output.shape, (rows, *row_shape)):
                expected = _shown((rows, *row_shape))
                raise BadBundle(f"{self.path}: on {rows} rows {name} is {output.shape}, expected {expected}")
            if not np.isfinite(output).all():
                raise BadBundle(f"{self.path}: on {rows} rows {name} holds NaN or infinity, expected numbers")
        return outputs


class Engine:
    """The graphs of one bundle on one device. With `threads` 0 each graph takes one thread if its rows are small, else
    as many as there are `cores`, which are by default all that this process may use; unless such a graph is very large
    or its sizes are open, `singles` has it on one thread too. With `in_bf16` encoder and decoder run in bf16; a scorer
    stays as it is, as it does in bundles below fp32.

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
    ) -> None:
        self.device = resolve_device(device)
        if self.device == "cuda":
            ort.preload_dlls()  # CUDA and cuDNN come as wheels, where the dynamic loader does not look
        cores = cores or available_cores()
        most_threads = threads or cores
        manifest = bundle.manifest
        if in_bf16:
            providers = ort.get_available_providers()
            bf16.require(device=self.device, graphs=manifest.precision, providers=providers, cpu_flags=cpu_flags())
        self.precision = "bf16" if in_bf16 else manifest.precision
        self._image_shape = manifest.image.default_shape
        self._latent_shape = manifest.latent_shape_of(*self._image_shape[:2])
        expected = signatures(manifest.image.shape, manifest.latent_shape, family=manifest.family)

        def on_threads(
            count: int, name: str, content: bytes, hint: bf16.Hint | None, external: Mapping[str, bytes] | None = None
        ) -> Graph:
            return Graph(
                content,
                expected[name],
                path=bundle.path / name,
                device=self.device,
                threads=count,
                is_fp32=manifest.precision == "fp32",
                external=external,
                hint=hint,
                runs=max(1, cores // count),
            )

        def graph(
            name: str, content: bytes, hint: bf16.Hint | None, external: Mapping[str, bytes] | None = None
        ) -> Graph:
            def made(count: int) -> Graph:
                return on_threads(count, name, content, hint, external)

            size_bytes = len(content) + sum(len(file) for file in (external or {}).values())
            if self.device != "cpu" or threads or most_threads == 1 or size_bytes > _HELD_TWICE_BYTES:
                return made(most_threads)
            # What a row takes is clearest on one thread: several use CPU while they wait for each other too.
            single = made(1)
            if _time_us(single, self._blank(name, 1))[1] < _SMALL_ROW_US:
                return single
            if not manifest.image.is_open:
                self.singles[name] = single
            return made(most_threads)

        self.singles: dict[str, Graph] = {}
        hint: bf16.Hint | None = "bf16" if in_bf16 else None
        self.encoder = graph(ENCODER, bundle.encoder, hint)
        self.decoder = graph(DECODER, bundle.decoder, hint)
        self.scorer = bundle.scorer and graph(SCORER, bundle.scorer, None, {DECODER: bundle.decoder})
        named = {ENCODER: self.encoder, DECODER: self.decoder, SCORER: self.scorer}
        self._graphs: dict[str, Graph] = {name: made for name, made in named.items() if made}
        opset = max(made.opset for made in self._graphs.values())
        if opset != manifest.opset:
            raise BadBundle(f"{bundle.path / MANIFEST}: opset is {manifest.opset}, its graphs have {opset}")
        self._prove(bundle)
        self.remark = ""  # what a person should know of the precision
        if in_bf16:
            exact = on_threads(self.encoder.threads, ENCODER, bundle.encoder, "f32")
            self.remark = self._measured(bundle, exact=exact)
        self.costs: dict[str, Cost] = {}

    @property
    def threads(self) -> int:
        """Threads of a run of the graph that takes most."""
        return max(graph.threads for graph in self._graphs.values())

    @property
    def provider(self) -> str:
        """onnxruntime's name of what really runs the graphs."""
        return self.encoder.provider

    def warm(self, max_batch_rows: int, max_run_pixels: int) -> None:
        """Run every graph at the sizes that batches take, so that no request pays for a first time, and measure what it
        costs; where sizes are open, on pictures of the default one.

        Raises:  BadBundle if a graph does not take such a number of rows
        """
        height, width, _ = self._image_shape
        allowed = rows_of_a_run(height * width, max_batch_rows=max_batch_rows, max_run_pixels=max_run_pixels)
        sizes = [2**power for power in range(allowed.bit_length())]
        for name, graph in self._graphs.items():
            if name in self.singles:
                for rows in range(1, min(allowed, graph.threads - 1) + 1):  # more are dealt to the cores
                    graph.tried(*self._blank(name, rows))
                graph = self.singles[name]
            few = [rows for rows in sizes if rows <= _COST_ROWS]
            for rows in few:
                graph.tried(*self._blank(name, rows))
            self.costs[name] = self._cost(name, graph, rows=few[-1])
            most = min(allowed, self.most_rows(name))
            for rows in sizes[len(few) :]:
                if rows <= most:
                    graph.tried(*self._blank(name, rows))
            if graph.hint and self.costs[name].row_us < _SLOW_ROW_US:
                for rows in sorted(set(range(1, 1 + min(most, _EVERY_SIZE_ROWS))) - set(sizes)):
                    graph.tried(*self._blank(name, rows))

    def most_rows(self, name: str) -> int:
        """How many rows of the default size a run of a graph is worth taking, as far as its cost says."""
        row_us = self.costs[name].row_us
        return max(1, int(_DEALT_RUN_US / row_us)) if name in self.singles and row_us else sys.maxsize

    def _cost(self, name: str, graph: Graph, *, rows: int) -> Cost:
        """What a graph costs, from runs of one row and of a few."""
        one_us, cpu_us = _time_us(graph, self._blank(name, 1))
        if rows == 1:
            return Cost(0.0, one_us, cpu_us)
        all_us, all_cpu_us = _time_us(graph, self._blank(name, rows))
        row_us = max(0.0, all_us - one_us) / (rows - 1)
        return Cost(max(0.0, one_us - row_us), row_us, all_cpu_us / rows)

    def _blank(self, name: str, rows: int) -> Arrays:
        """Inputs of a graph, all zero."""
        image = np.zeros((rows, *self._image_shape), np.uint8)
        z = np.zeros((rows, *self._latent_shape), np.float32)
        blank: dict[str, Arrays] = {ENCODER: (image,), DECODER: (z,), SCORER: (image, z)}
        return blank[name]

    def _prove(self, bundle: Bundle) -> None:
        """Compare the graphs' answers on the probe with the source's, within the manifest's tolerance, or bf16's."""
        probe = bundle.probe
        answers = vars(probe) | {"image": probe.decoded}
        given: dict[str, Arrays] = {ENCODER: (probe.image,), DECODER: (probe.z,), SCORER: (probe.image, probe.z)}
        for file, graph in (*self._graphs.items(), *self.singles.items()):
            inputs = given[file]
            scale_head = bundle.manifest.scale_head
            tolerance = bf16.TOLERANCE if graph.hint else bundle.manifest.tolerance
            for name, found in zip(graph.outputs, graph.tried(*inputs), strict=True):
                expected = answers[name]
                if found.shape != expected.shape:
                    raise BadBundle(f"{graph.path}: {name} is {found.shape} on the probe, expected {expected.shape}")
                fault = _fault(name, found, expected, logvar=probe.logvar, scale_head=scale_head, tolerance=tolerance)
                if fault:
                    raise BadBundle(f"{graph.path}: {name} {fault}")

    def _measured(self, bundle: Bundle, *, exact: Graph) -> str:
        """How far bf16 is from the probe, once it is sure that it is in use: to OpenVINO a hint that it cannot read is
        none, and it answers in fp32.

        Raises:  BadEngine if the encoder answers to the bit what the exact one does
        """
        probe = bundle.probe
        found = self.encoder.run(probe.image)
        if all(np.array_equal(mine, its) for mine, its in zip(found, exact.run(probe.image), strict=True)):
            raise BadEngine(f"{exact.path}: OpenVINO answers the probe in bf16 as in fp32, to the bit")
        sigma = differences.in_sigma(found[0], probe.mu, probe.logvar).max()
        (image,) = self.decoder.run(probe.z)
        return f"mu {sigma:.2g} sigma from the probe's, pictures {differences.psnr_db(image, probe.decoded):.3g} dB"


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
        engine = Engine(bundle, device=device, threads=threads, cores=cores)
        engine.remark = f"not bf16: {refused}"
        return engine


def _session_options(threads: int, external: Mapping[str, bytes], *, in_openvino: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors come as exceptions, and are told once
    options.enable_mem_pattern = False  # a plan for each batch size costs memory, and hardly saves time
    # Threads that spin within a run wait for each other less; between runs they would take the event loop's core.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(threads > 1)))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    _share_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Of a file that is ONNX and onnxruntime's own format at once, it would run the part that nobody has looked at.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_external_initializers_from_files_in_memory(
        list(external), list(external.values()), [len(file) for file in external.values()]
    )
    if in_openvino:  # or else nodes that OpenVINO does not take, be it all of them, run elsewhere
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _ending(stop: Stop) -> ort.RunOptions:
    options = ort.RunOptions()
    stop.by(lambda: setattr(options, "terminate", True))
    return options


@cache
def _share_arena() -> None:
    """Have the CPU's graphs of this process compute in one arena of memory, where each would keep one of its own, as
    large as its largest run.
    """
    ort.create_and_register_allocator(
        ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT), None
    )


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


def _fault(
    name: str,
    found: NDArray[Any],
    expected: NDArray[Any],
    *,
    logvar: NDArray[Any] | None,
    scale_head: str | None,
    tolerance: AnyTolerance,
) -> str | None:
    """What an answer differs by from the probe's, if that is more than is tolerated."""
    if isinstance(tolerance, Tolerance):
        match name:
            case "logvar":
                apart = differences.of_logvar(found, expected, scale_head=scale_head)
            case "log_likelihood":
                apart = differences.of_sums(found, expected)
            case _:
                apart = differences.absolute(found, expected)
        return _excess(apart.max(), getattr(tolerance, name))
    if name == "mu":
        return _excess(differences.in_sigma(found, expected, logvar).max(), tolerance.mu_in_sigma, unit=" sigma")
    if name == "image" and not (psnr_db := differences.psnr_db(found, expected)) >= tolerance.psnr_db:
        return f"is {psnr_db:.3g} dB from the probe's, the tolerance is {tolerance.psnr_db:g} dB"
    return None  # logvar and log-likelihoods have no tolerance of their own below fp32


def _excess(largest: float, allowed: float, *, unit: str = "") -> str | None:
    if largest <= allowed:  # which NaN is not
        return None
    return f"differs from the probe by {largest:.3g}{unit}, the tolerance is {allowed:g}{unit}"


def _fits(found: tuple[int, ...], expected: RowShape) -> bool:
    """Whether a shape is the expected one, where None admits any length."""
    return len(found) == len(expected) and all(
        axis in (None, length) for axis, length in zip(expected, found, strict=True)
    )


def resolve_device(device: Device) -> Literal["cpu", "cuda"]:
    """The device that graphs will run on.

    Raises:  BadEngine if CUDA was asked for and this onnxruntime or machine has none
    """
    offered = _PROVIDERS["cuda"] in ort.get_available_providers()
    if device == "auto":
        return "cuda" if offered and _has_gpu() else "cpu"
    if device == "cuda" and not offered:
        raise BadEngine("device cuda: the installed onnxruntime has no CUDAExecutionProvider, install vaeserve[gpu]")
    return device


def _has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


def _check(path: Path, side: str, expected: dict[str, tuple[str, RowShape]], nodes: list[Any]) -> None:
    found = {node.name: (node.type, node.shape) for node in nodes}
    if sorted(found) != sorted(expected):
        raise BadBundle(f"{path}: {side} are {sorted(found)}, the bundle format has {sorted(expected)}")
    for name, (dtype, row_shape) in expected.items():
        found_type, found_shape = found[name]
        batch, *rest = found_shape or [None]
        fixed = tuple(axis if isinstance(axis, int) else None for axis in rest)
        if found_type != _ORT_TYPES[dtype] or isinstance(batch, int) or fixed != row_shape:
            expected_type = f"{_ORT_TYPES[dtype]} {_shown((None, *row_shape))}"
            raise BadBundle(f"{path}: {name} is {found_type} {found_shape}, the manifest says {expected_type}")


def _shown(shape: RowShape) -> str:
    return f"[{', '.join('free' if axis is None else str(axis) for axis in shape)}]"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
