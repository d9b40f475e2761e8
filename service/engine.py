"""onnxruntime sessions of one bundle: loaded on a stated device, proven on the bundle's probe, warmed."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from service.bundle import DECODER, ENCODER, BadBundle, Bundle
from service.machine import BadEngine, available_cores

# onnxruntime's wheels for Linux send telemetry and write to the home directory unless told so before the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

Device = Literal["auto", "cpu", "cuda"]
Arrays = tuple[NDArray[Any], ...]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ORT_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}


@dataclass(frozen=True)
class Signature:
    """Names, dtypes and row shapes of what a graph takes and gives; the batch axis is not in the shapes."""

    inputs: dict[str, tuple[str, tuple[int, ...]]]
    outputs: dict[str, tuple[str, tuple[int, ...]]]


def encoder_signature(image_shape: tuple[int, int, int], latent_shape: tuple[int, ...]) -> Signature:
    """What `encoder.onnx` must take and give."""
    latent = ("float32", latent_shape)
    return Signature({"image": ("uint8", image_shape)}, {"mu": latent, "logvar": latent})


def decoder_signature(image_shape: tuple[int, int, int], latent_shape: tuple[int, ...]) -> Signature:
    """What `decoder.onnx` must take and give."""
    return Signature({"z": ("float32", latent_shape)}, {"image": ("uint8", image_shape)})


class Graph:
    """One ONNX graph, ready to run: one input of rows, outputs of as many rows.

    Raises:  BadBundle if onnxruntime refuses it or its inputs and outputs are not those of the signature,
             BadEngine if the device was asked for and cannot be had
    """

    def __init__(
        self,
        content: bytes,
        signature: Signature,
        *,
        path: Path,
        device: Literal["cpu", "cuda"],
        threads: int,
    ) -> None:
        self.path = path
        self.provider = _PROVIDERS[device]
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors come as exceptions, and are told once
        # A spinning pool thread would take the event loop's core between runs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(content, options, providers=[self.provider])
        except Exception as error:  # onnxruntime's own exception classes share no public base
            raise BadBundle(f"{path}: onnxruntime refuses it ({_first_line(error)})") from error
        if self._session.get_providers()[0] != self.provider:
            raise BadEngine(f"device {device}: {self.provider} did not start, onnxruntime fell back to another")
        _check(path, "inputs", signature.inputs, self._session.get_inputs())
        _check(path, "outputs", signature.outputs, self._session.get_outputs())
        self._signature = signature
        (self._input,) = signature.inputs
        self._outputs = list(signature.outputs)

    def run(self, rows: NDArray[Any]) -> Arrays:
        """The outputs, in the signature's order, for any number of rows."""
        return tuple(cast("list[NDArray[Any]]", self._session.run(self._outputs, {self._input: rows})))

    def tried(self, rows: NDArray[Any]) -> Arrays:
        """As `run`, before the graph is trusted.

        Raises:  BadBundle if the graph fails, or its outputs have another shape than the signature says
        """
        try:
            outputs = self.run(rows)
        except Exception as error:  # as in __init__
            raise BadBundle(f"{self.path}: fails on {len(rows)} rows ({_first_line(error)})") from error
        for (name, (_, row_shape)), output in zip(self._signature.outputs.items(), outputs, strict=True):
            expected = (len(rows), *row_shape)
            if output.shape != expected:
                raise BadBundle(f"{self.path}: on {len(rows)} rows {name} is {output.shape}, expected {expected}")
        return outputs


class Engine:
    """The graphs of one bundle on one device.

    Raises:  BadBundle if a graph or the probe's answers are not what the manifest says, BadEngine if the
             device cannot be had
    """

    precision = "fp32"

    def __init__(self, bundle: Bundle, *, device: Device, threads: int) -> None:
        self.device = resolve_device(device)
        if self.device == "cuda":
            ort.preload_dlls()  # CUDA and cuDNN come as wheels, where the dynamic loader does not look
        self.threads = threads or available_cores()
        self._shapes = (bundle.manifest.image.shape, bundle.manifest.latent_shape)
        self.encoder = self._graph(bundle.encoder, bundle.folder / ENCODER, encoder_signature(*self._shapes))
        self.decoder = self._graph(bundle.decoder, bundle.folder / DECODER, decoder_signature(*self._shapes))
        self._prove(bundle)

    def _graph(self, content: bytes, path: Path, signature: Signature) -> Graph:
        return Graph(content, signature, path=path, device=self.device, threads=self.threads)

    @property
    def provider(self) -> str:
        """onnxruntime's name of what really runs the graphs."""
        return self.encoder.provider

    def encode(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Posterior of each picture.

        Shapes:  image (n, h, w, c) -> mu, logvar (n, *latent_shape)
        """
        mu, logvar = self.encoder.run(image)
        return mu, logvar

    def decode(self, z: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The mean of p(x given z), as pixels.

        Shapes:  z (n, *latent_shape) -> (n, h, w, c)
        """
        (image,) = self.decoder.run(z)
        return cast("NDArray[np.uint8]", image)

    def warm(self, max_batch_rows: int) -> None:
        """Run both graphs at the sizes that batches take, so that no request pays for a first time.

        Raises:  BadBundle if a graph does not take such a number of rows
        """
        image_shape, latent_shape = self._shapes
        rows = 1
        while rows <= max_batch_rows:
            self.encoder.tried(np.zeros((rows, *image_shape), np.uint8))
            self.decoder.tried(np.zeros((rows, *latent_shape), np.float32))
            rows *= 2

    def _prove(self, bundle: Bundle) -> None:
        """Compare the graphs' answers on the probe with the source's, within the manifest's tolerance."""
        probe, tolerance = bundle.probe, bundle.manifest.tolerance["fp32"]
        mu, logvar = self.encoder.tried(probe.image)
        (image,) = self.decoder.tried(probe.z)
        for path, name, found, expected, allowed in (
            (self.encoder.path, "mu", mu, probe.mu, tolerance.mu),
            (self.encoder.path, "logvar", logvar, probe.logvar, tolerance.logvar),
            (self.decoder.path, "image", image, probe.decoded, tolerance.image),
        ):
            largest = float(np.abs(found.astype(np.float64) - expected).max())
            if not largest <= allowed:  # NaN is refused too
                raise BadBundle(f"{path}: {name} differs from the probe by {largest:.3g}, the tolerance is {allowed:g}")


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


def _check(path: Path, side: str, expected: dict[str, tuple[str, tuple[int, ...]]], nodes: list[Any]) -> None:
    found = {node.name: (node.type, node.shape) for node in nodes}
    if sorted(found) != sorted(expected):
        raise BadBundle(f"{path}: {side} are {sorted(found)}, the bundle format has {sorted(expected)}")
    for name, (dtype, row_shape) in expected.items():
        found_type, found_shape = found[name]
        batch, *rest = found_shape or [None]
        if found_type != _ORT_TYPES[dtype] or isinstance(batch, int) or tuple(rest) != row_shape:
            raise BadBundle(
                f"{path}: {name} is {found_type} {found_shape}, "
                f"the manifest says {_ORT_TYPES[dtype]} ['n', {', '.join(map(str, row_shape))}]"
            )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
