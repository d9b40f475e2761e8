"""One ONNX graph in onnxruntime, on a device that is there: what it takes, what it gives, and its runs."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from service import bf16, graph_file
from service.bundle import BadBundle
from service.errors import OutOfMemory
from service.machine import BadEngine, cpu_flags
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
Arrays = tuple[NDArray[Any], ...]
RowShape = tuple[int | None, ...]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ORT_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}


@dataclass(frozen=True)
class Signature:
    """Names, dtypes and row shapes of what a graph takes and gives; the batch axis is not in the shapes, and an axis
    that is free stands there as None.
    """

    inputs: dict[str, tuple[str, RowShape]]
    outputs: dict[str, tuple[str, RowShape]]


def offered() -> frozenset[str]:
    """onnxruntime's names of what the installed one can run graphs on."""
    return frozenset(ort.get_available_providers())


def resolve_device(device: Device) -> Literal["cpu", "cuda"]:
    """The device that graphs will run on.

    Raises:  BadEngine if CUDA was asked for and this onnxruntime has none
    """
    has_cuda = _PROVIDERS["cuda"] in offered()
    if device == "auto":
        return "cuda" if has_cuda and _has_gpu() else "cpu"
    if device == "cuda" and not has_cuda:
        raise BadEngine("device cuda: the installed onnxruntime has no CUDAExecutionProvider, install vaeserve[gpu]")
    return device


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
            _load_cuda()
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
    if _sums_saturate(cpu_flags()):
        options.add_session_config_entry("session.x64quantprecision", "1")
    if in_openvino:  # or else nodes that OpenVINO does not take, be it all of them, run elsewhere
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _sums_saturate(flags: frozenset[str]) -> bool:
    """Whether a processor of Intel's kind adds two products of 8 bits in 16, which are too few for the largest of them,
    so that an int8 graph would answer otherwise than where it was proven; onnxruntime then computes in another, slower
    way.

    Source:  Intel's optimization manual, VPMADDUBSW beside VPDPBUSD
    """
    return "sse4_1" in flags and not {"avx512_vnni", "avx_vnni"} & flags


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


@cache
def _load_cuda() -> None:
    """CUDA and cuDNN come as wheels, where the dynamic loader does not look."""
    ort.preload_dlls()


def _has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


def _fits(found: tuple[int, ...], expected: RowShape) -> bool:
    """Whether a shape is the expected one, where None admits any length."""
    return len(found) == len(expected) and all(
        axis in (None, length) for axis, length in zip(expected, found, strict=True)
    )


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
