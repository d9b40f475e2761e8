"""Bundles whose graphs are one matrix each, written without torch, so that every answer is plain numpy."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, StringStringEntryProto, TensorProto, helper, numpy_helper
from safetensors.numpy import save

from export.bundle import bundle_files, manifest_of, write
from export.frozen import Graphs
from service.bundle import Probe
from service.manifest import DECODER, PRIOR, Manifest

LOGVAR_RANGE = (-15.0, 15.0)
SIGMA = 0.1
Family = Literal["vae", "autoencoder"]


class Model(Protocol):
    """What a bundle is written from."""

    def encoder(self) -> bytes: ...
    def decoder(self) -> bytes: ...
    def scorer(self) -> bytes: ...
    def probe(self) -> Probe: ...
    def log_likelihood(self, image: NDArray[np.uint8], z: NDArray[np.float32]) -> NDArray[np.float32]: ...
    def fields(self, name: str) -> dict[str, object]: ...


@dataclass(frozen=True)
class Linear:
    """mu = A x, logvar = B x, picture = 255 (D z + 1/2), rounded and cut to a byte; x is pixels / 255.

    The autoencoder's graph gives mu alone.
    """

    shape: tuple[int, int, int]
    latent_shape: tuple[int, ...]
    a: NDArray[np.float32]
    b: NDArray[np.float32]
    d: NDArray[np.float32]
    family: Family = "vae"

    def encode(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        x = image.reshape(len(image), -1).astype(np.float32) / np.float32(255)
        return (x @ self.a).reshape(-1, *self.latent_shape), (x @ self.b).reshape(-1, *self.latent_shape)

    def decode(self, z: NDArray[np.float32]) -> NDArray[np.uint8]:
        x_hat = z.reshape(len(z), -1) @ self.d + np.float32(0.5)
        return np.rint(np.clip(x_hat * 255, 0, 255)).astype(np.uint8).reshape(-1, *self.shape)

    def log_likelihood(self, image: NDArray[np.uint8], z: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of a gaussian around D z + 1/2, which is cut to no range, in nats."""
        x_hat = z.reshape(len(z), -1) @ self.d + np.float32(0.5)
        return gaussian(image.reshape(len(image), -1) / 255.0, x_hat)

    def encoder(self) -> bytes:
        pixels = int(np.prod(self.shape))
        nodes = [
            helper.make_node("Cast", ["image"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["wide", "flat"], ["rows"]),
            helper.make_node("Div", ["rows", "white"], ["x"]),
            helper.make_node("MatMul", ["x", "a"], ["mu_flat"]),
            helper.make_node("Reshape", ["mu_flat", "latent"], ["mu"]),
        ]
        constants = {
            "flat": np.array([-1, pixels]),
            "white": np.array(255, np.float32),
            "a": self.a,
            "latent": np.array([-1, *self.latent_shape]),
        }
        latent = (TensorProto.FLOAT, ["n", *self.latent_shape])
        outputs = {"mu": latent}
        if self.family == "vae":
            nodes.append(helper.make_node("MatMul", ["x", "b"], ["logvar_flat"]))
            nodes.append(helper.make_node("Reshape", ["logvar_flat", "latent"], ["logvar"]))
            constants["b"] = self.b
            outputs["logvar"] = latent
        return _model(nodes, {"image": (TensorProto.UINT8, ["n", *self.shape])}, outputs, constants)

    def decoder(self) -> bytes:
        latent_dim = int(np.prod(self.latent_shape))
        nodes = [
            helper.make_node("Reshape", ["z", "flat"], ["rows"]),
            helper.make_node("MatMul", ["rows", "d"], ["centred"]),
            helper.make_node("Add", ["centred", "half"], ["x_hat"]),
            helper.make_node("Mul", ["x_hat", "white"], ["grey"]),
            helper.make_node("Clip", ["grey", "zero", "white"], ["cut"]),
            helper.make_node("Round", ["cut"], ["rounded"]),
            helper.make_node("Cast", ["rounded"], ["bytes"], to=TensorProto.UINT8),
            helper.make_node("Reshape", ["bytes", "picture"], ["image"]),
        ]
        constants = {
            "flat": np.array([-1, latent_dim]),
            "d": self.d,
            "half": np.array(0.5, np.float32),
            "white": np.array(255, np.float32),
            "zero": np.array(0, np.float32),
            "picture": np.array([-1, *self.shape]),
        }
        return _model(
            nodes,
            {"z": (TensorProto.FLOAT, ["n", *self.latent_shape])},
            {"image": (TensorProto.UINT8, ["n", *self.shape])},
            constants,
        )

    def scorer(self, *, shared: bool = False) -> bytes:
        """log p(x given z) of the manifest's gaussian; shared, its matrix is read out of decoder.onnx."""
        pixels, latent_dim = int(np.prod(self.shape)), int(np.prod(self.latent_shape))
        nodes = [
            helper.make_node("Cast", ["image"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["wide", "flat_image"], ["grey"]),
            helper.make_node("Reshape", ["z", "flat_z"], ["rows"]),
            helper.make_node("MatMul", ["rows", "d"], ["centred"]),
            helper.make_node("Add", ["centred", "half"], ["x_hat"]),
            *_GAUSSIAN_NODES,
        ]
        constants = {
            "flat_image": np.array([-1, pixels]),
            "flat_z": np.array([-1, latent_dim]),
            "d": self.d,
            "half": np.array(0.5, np.float32),
            **_gaussian_constants(axes=[1]),
        }
        inputs = {
            "image": (TensorProto.UINT8, ["n", *self.shape]),
            "z": (TensorProto.FLOAT, ["n", *self.latent_shape]),
        }
        external = {"d": (DECODER, self.decoder().index(self.d.tobytes()))} if shared else {}
        return _model(nodes, inputs, {"log_likelihood": (TensorProto.FLOAT, ["n"])}, constants, external=external)

    def probe(self) -> Probe:
        generator = np.random.default_rng(7)
        image = generator.integers(0, 256, (4, *self.shape), dtype=np.uint8)
        mu, logvar = self.encode(image)
        z = generator.standard_normal((4, *self.latent_shape), dtype=np.float32)
        return Probe(image, mu, logvar if self.family == "vae" else None, z, self.decode(z), log_likelihood=None)

    def fields(self, name: str) -> dict[str, object]:
        height, width, channels = self.shape
        image = {"height": height, "width": width, "channels": channels}
        return _fields(name, self.family, image=image, latent_shape=self.latent_shape, side=(height, width))


@dataclass(frozen=True)
class OpenLinear:
    """As `Linear`, on every patch of stride × stride pixels apart: a latent (channels, h / stride, w / stride)."""

    stride: int
    default_side: int
    max_side: int
    channels: int
    a: NDArray[np.float32]
    b: NDArray[np.float32]
    d: NDArray[np.float32]
    family: Family = "vae"

    @property
    def latent_channels(self) -> int:
        return self.a.shape[1]

    def encode(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        patches = self._patches(image).astype(np.float32) / np.float32(255)
        mu, logvar = (np.ascontiguousarray((patches @ matrix).transpose(0, 3, 1, 2)) for matrix in (self.a, self.b))
        return mu, logvar

    def decode(self, z: NDArray[np.float32]) -> NDArray[np.uint8]:
        patches = np.rint(np.clip(self._means(z) * 255, 0, 255)).astype(np.uint8)
        n, rows, columns, _ = patches.shape
        parts = patches.reshape(n, rows, columns, self.stride, self.stride, self.channels).transpose(0, 1, 3, 2, 4, 5)
        return parts.reshape(n, rows * self.stride, columns * self.stride, self.channels)

    def log_likelihood(self, image: NDArray[np.uint8], z: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of a gaussian around the means of all patches, which are cut to no range, in nats."""
        n = len(image)
        return gaussian(self._patches(image).reshape(n, -1) / 255.0, self._means(z).reshape(n, -1))

    def encoder(self) -> bytes:
        nodes = [
            helper.make_node("Cast", ["image"], ["grey"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["grey", "white"], ["pixels"]),
            *self._patch_nodes("pixels", "x"),
            helper.make_node("MatMul", ["x", "a"], ["mu_last"]),
            helper.make_node("Transpose", ["mu_last"], ["mu"], perm=_CHANNELS_FIRST),
        ]
        constants = {"white": np.array(255, np.float32), "a": self.a}
        outputs = {"mu": self._latent("latent_h", "latent_w")}
        if self.family == "vae":
            nodes.append(helper.make_node("MatMul", ["x", "b"], ["logvar_last"]))
            nodes.append(helper.make_node("Transpose", ["logvar_last"], ["logvar"], perm=_CHANNELS_FIRST))
            constants["b"] = self.b
            outputs["logvar"] = outputs["mu"]
        return _model(nodes, {"image": self._image("h", "w")}, outputs, constants)

    def decoder(self) -> bytes:
        nodes = [
            *self._mean_nodes(),
            helper.make_node("Mul", ["x_hat", "white"], ["grey"]),
            helper.make_node("Clip", ["grey", "zero", "white"], ["cut"]),
            helper.make_node("Round", ["cut"], ["rounded"]),
            helper.make_node("Transpose", ["rounded"], ["deep"], perm=_CHANNELS_FIRST),
            helper.make_node("DepthToSpace", ["deep"], ["flat"], blocksize=self.stride),
            helper.make_node("Transpose", ["flat"], ["last"], perm=_CHANNELS_LAST),
            helper.make_node("Cast", ["last"], ["image"], to=TensorProto.UINT8),
        ]
        constants = {
            "d": self.d,
            "half": np.array(0.5, np.float32),
            "white": np.array(255, np.float32),
            "zero": np.array(0, np.float32),
        }
        return _model(nodes, {"z": self._latent("latent_h", "latent_w")}, {"image": self._image("h", "w")}, constants)

    def scorer(self) -> bytes:
        """log p(x given z) of the manifest's gaussian, whose constant counts the pixels that came."""
        nodes = [
            helper.make_node("Cast", ["image"], ["wide"], to=TensorProto.FLOAT),
            *self._patch_nodes("wide", "grey"),
            *self._mean_nodes(),
            *_GAUSSIAN_NODES,
        ]
        constants = {"d": self.d, "half": np.array(0.5, np.float32), **_gaussian_constants(axes=[1, 2, 3])}
        inputs = {"image": self._image("h", "w"), "z": self._latent("latent_h", "latent_w")}
        return _model(nodes, inputs, {"log_likelihood": (TensorProto.FLOAT, ["n"])}, constants)

    def probe(self) -> Probe:
        generator = np.random.default_rng(7)
        side, places = self.default_side, self.default_side // self.stride
        image = generator.integers(0, 256, (4, side, side, self.channels), dtype=np.uint8)
        mu, logvar = self.encode(image)
        z = generator.standard_normal((4, self.latent_channels, places, places), dtype=np.float32)
        return Probe(image, mu, logvar if self.family == "vae" else None, z, self.decode(z), log_likelihood=None)

    def fields(self, name: str) -> dict[str, object]:
        image = {
            "height": None,
            "width": None,
            "channels": self.channels,
            "stride": self.stride,
            "default_side": self.default_side,
            "max_side": self.max_side,
        }
        latent_shape = (self.latent_channels, None, None)
        side = (self.default_side, self.default_side)
        return _fields(name, self.family, image=image, latent_shape=latent_shape, side=side)

    def _patches(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        n, height, width, channels = image.shape
        rows, columns = height // self.stride, width // self.stride
        parts = image.reshape(n, rows, self.stride, columns, self.stride, channels).transpose(0, 1, 3, 2, 4, 5)
        return parts.reshape(n, rows, columns, -1)

    def _means(self, z: NDArray[np.float32]) -> NDArray[np.float32]:
        return z.transpose(0, 2, 3, 1) @ self.d + np.float32(0.5)

    def _patch_nodes(self, name: str, output: str) -> list[NodeProto]:
        return [
            helper.make_node("Transpose", [name], [f"{name}_first"], perm=_CHANNELS_FIRST),
            helper.make_node("SpaceToDepth", [f"{name}_first"], [f"{name}_deep"], blocksize=self.stride),
            helper.make_node("Transpose", [f"{name}_deep"], [output], perm=_CHANNELS_LAST),
        ]

    def _mean_nodes(self) -> list[NodeProto]:
        return [
            helper.make_node("Transpose", ["z"], ["rows"], perm=_CHANNELS_LAST),
            helper.make_node("MatMul", ["rows", "d"], ["centred"]),
            helper.make_node("Add", ["centred", "half"], ["x_hat"]),
        ]

    def _image(self, height: str, width: str) -> tuple[int, list[str | int]]:
        return TensorProto.UINT8, ["n", height, width, self.channels]

    def _latent(self, height: str, width: str) -> tuple[int, list[str | int]]:
        return TensorProto.FLOAT, ["n", self.latent_channels, height, width]


_CHANNELS_FIRST, _CHANNELS_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
# From `grey`, pixels from 0 to 255, and `x_hat` of the same shape.
_GAUSSIAN_NODES = [
    helper.make_node("Div", ["grey", "white"], ["x"]),
    helper.make_node("Sub", ["x", "x_hat"], ["apart"]),
    helper.make_node("Div", ["apart", "sigma"], ["standardised"]),
    helper.make_node("Mul", ["standardised", "standardised"], ["squared"]),
    helper.make_node("Mul", ["squared", "minus_half"], ["exponent"]),
    helper.make_node("Add", ["exponent", "constant"], ["nats"]),
    helper.make_node("ReduceSum", ["nats", "axes"], ["log_likelihood"], keepdims=0),
]


def _gaussian_constants(*, axes: list[int]) -> dict[str, NDArray]:
    return {
        "white": np.array(255, np.float32),
        "sigma": np.array(SIGMA, np.float32),
        "minus_half": np.array(-0.5, np.float32),
        "constant": np.array(-math.log(SIGMA) - 0.5 * math.log(2 * math.pi), np.float32),
        "axes": np.array(axes),
    }


def gaussian(x: NDArray, x_hat: NDArray) -> NDArray[np.float32]:
    """log N(x; x_hat, SIGMA²), summed over all but the first axis, in nats."""
    squared = ((x - x_hat.astype(np.float64)) / SIGMA) ** 2
    constant = -math.log(SIGMA) - 0.5 * math.log(2 * math.pi)
    return (constant - 0.5 * squared).sum(axis=1).astype(np.float32)


def _fields(
    name: str,
    family: Family,
    *,
    image: dict[str, int | None],
    latent_shape: tuple[int | None, ...],
    side: tuple[int, int],
) -> dict[str, object]:
    nothing = {"max": 0.0, "mean": 0.0}
    has_posterior = family == "vae"
    return {
        "name": name,
        "family": family,
        "image": image,
        "latent_shape": latent_shape,
        "likelihood": {"kind": "gaussian", "sigma": SIGMA},
        "prior": "standard" if has_posterior else "none",
        "scale_head": "logvar" if has_posterior else None,
        "logvar_range": LOGVAR_RANGE if has_posterior else None,
        "opset": 20,
        "source": {"kind": "vaeserve", "version": "0", "network": "linear"},
        "precision": "fp32",
        "tolerance": {"mu": 1e-4, "logvar": 1e-4, "image": 1},
        "parity": {
            "mu": nothing,
            "logvar": nothing if has_posterior else None,
            "image": nothing,
            "shapes": [[4, *side]],
            "pictures": 4,
        },
        "diagnostics": None,
        "metrics": None,
        "licence": "Apache-2.0",
    }


@dataclass(frozen=True)
class Bundles:
    """Folders: `colour` holds 6×5×3 pictures and latents (4,), `grey` 28×28×1 and latents (2, 3, 2)."""

    colour: Path
    grey: Path

    @property
    def arguments(self) -> list[str]:
        return [str(self.colour), str(self.grey)]


def linear(shape: tuple[int, int, int] = (6, 5, 3), latent_shape: tuple[int, ...] = (4,), seed: int = 0) -> Linear:
    generator = np.random.default_rng(seed)
    pixels, latent_dim = int(np.prod(shape)), int(np.prod(latent_shape))

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        return (generator.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)

    a, b, d = matrix(pixels, latent_dim), matrix(pixels, latent_dim), matrix(latent_dim, pixels)
    return Linear(shape, latent_shape, a, b, d)


def open_linear(
    stride: int = 4,
    *,
    default_side: int = 16,
    max_side: int = 64,
    channels: int = 3,
    latent_channels: int = 2,
    seed: int = 2,
) -> OpenLinear:
    patch = linear((stride, stride, channels), (latent_channels,), seed)
    return OpenLinear(stride, default_side, max_side, channels, patch.a, patch.b, patch.d)


def fitted_prior(latent_dim: int = 4, *, components: int = 3, seed: int = 3) -> dict[str, NDArray[np.float32]]:
    """The tensors of a `prior.safetensors`: a mixture whose components lie well apart."""
    generator = np.random.default_rng(seed)
    weights = generator.uniform(0.5, 1.5, components)
    factors = np.tril(generator.normal(0, 0.2, (components, latent_dim, latent_dim)), k=-1)
    diagonal = generator.uniform(0.2, 0.6, (components, latent_dim))
    return {
        "weights": (weights / weights.sum()).astype(np.float32),
        "means": generator.normal(0, 3, (components, latent_dim)).astype(np.float32),
        "cholesky": (factors + diagonal[:, None, :] * np.eye(latent_dim)).astype(np.float32),
    }


def write_linear(
    folder: Path,
    model: Model,
    *,
    name: str | None = None,
    scorer: bytes | None = None,
    fitted: Mapping[str, NDArray] | None = None,
    others: Mapping[str, bytes] = MappingProxyType({}),
    **changes: object,
) -> Manifest:
    """The model as a bundle, with a scorer as `model.scorer()` makes it, with a fitted prior of these tensors, with
    other files as they are.

    `changes` replace fields of its manifest.
    """
    probe = model.probe()
    if scorer is not None:
        probe = replace(probe, log_likelihood=model.log_likelihood(probe.image, probe.z))
    density = {} if fitted is None else {PRIOR: save(dict(fitted))}
    files = bundle_files(Graphs(model.encoder(), model.decoder(), scorer), probe=probe, others={**density, **others})
    manifest = manifest_of(files, model.fields(name or folder.name) | changes)
    write(folder, files, manifest)
    return manifest


def _model(
    nodes: list,
    inputs: dict,
    outputs: dict,
    constants: dict[str, NDArray],
    *,
    external: Mapping[str, tuple[str, int]] | None = None,
) -> bytes:
    """Serialised ONNX; `external` says of constants in which file and where their bytes stand."""
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    for tensor in graph.initializer:
        if tensor.name in (external or {}):
            location, offset = external[tensor.name]
            place = {"location": location, "offset": offset, "length": len(tensor.raw_data)}
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.extend(
                StringStringEntryProto(key=key, value=str(value)) for key, value in place.items()
            )
    opset = helper.make_opsetid("", 20)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()
