"""A bundle whose graphs are one matrix each, written without torch, so that every answer is plain numpy."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.bundle import bundle_files, manifest_of, write
from service.bundle import Manifest, Probe

LOGVAR_RANGE = (-15.0, 15.0)


@dataclass(frozen=True)
class Linear:
    """mu = A x, logvar = B x, picture = 255 (D z + 1/2), rounded and cut to a byte; x is pixels / 255."""

    shape: tuple[int, int, int]
    latent_shape: tuple[int, ...]
    a: NDArray[np.float32]
    b: NDArray[np.float32]
    d: NDArray[np.float32]

    def encode(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        x = image.reshape(len(image), -1).astype(np.float32) / np.float32(255)
        return (x @ self.a).reshape(-1, *self.latent_shape), (x @ self.b).reshape(-1, *self.latent_shape)

    def decode(self, z: NDArray[np.float32]) -> NDArray[np.uint8]:
        x_hat = z.reshape(len(z), -1) @ self.d + np.float32(0.5)
        return np.rint(np.clip(x_hat * 255, 0, 255)).astype(np.uint8).reshape(-1, *self.shape)

    def encoder(self) -> bytes:
        pixels = int(np.prod(self.shape))
        nodes = [
            helper.make_node("Cast", ["image"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["wide", "flat"], ["rows"]),
            helper.make_node("Div", ["rows", "white"], ["x"]),
            helper.make_node("MatMul", ["x", "a"], ["mu_flat"]),
            helper.make_node("MatMul", ["x", "b"], ["logvar_flat"]),
            helper.make_node("Reshape", ["mu_flat", "latent"], ["mu"]),
            helper.make_node("Reshape", ["logvar_flat", "latent"], ["logvar"]),
        ]
        constants = {
            "flat": np.array([-1, pixels]),
            "white": np.array(255, np.float32),
            "a": self.a,
            "b": self.b,
            "latent": np.array([-1, *self.latent_shape]),
        }
        latent = (TensorProto.FLOAT, ["n", *self.latent_shape])
        return _model(
            nodes, {"image": (TensorProto.UINT8, ["n", *self.shape])}, {"mu": latent, "logvar": latent}, constants
        )

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

    def probe(self) -> Probe:
        generator = np.random.default_rng(7)
        image = generator.integers(0, 256, (4, *self.shape), dtype=np.uint8)
        mu, logvar = self.encode(image)
        z = generator.standard_normal((4, *self.latent_shape), dtype=np.float32)
        return Probe(image, mu, logvar, z, self.decode(z))

    def fields(self, name: str) -> dict[str, object]:
        height, width, channels = self.shape
        nothing = {"max": 0.0, "mean": 0.0}
        return {
            "name": name,
            "family": "vae",
            "image": {"height": height, "width": width, "channels": channels},
            "latent_shape": self.latent_shape,
            "likelihood": {"kind": "gaussian", "sigma": 0.1},
            "prior": "standard",
            "scale_head": "logvar",
            "logvar_range": LOGVAR_RANGE,
            "opset": 20,
            "source": {"kind": "vaeserve", "version": "0", "preset": "linear"},
            "tolerance": {"fp32": {"mu": 1e-4, "logvar": 1e-4, "image": 1}},
            "parity": {"fp32": {"mu": nothing, "logvar": nothing, "image": nothing, "batch_rows": [4], "pictures": 4}},
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


def write_linear(folder: Path, model: Linear, *, name: str | None = None, **changes: object) -> Manifest:
    """The model as a bundle; `changes` replace fields of its manifest."""
    files = bundle_files(encoder=model.encoder(), decoder=model.decoder(), probe=model.probe())
    manifest = manifest_of(files, model.fields(name or folder.name) | changes)
    write(folder, files, manifest)
    return manifest


def _model(nodes: list, inputs: dict, outputs: dict, constants: dict[str, NDArray]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = helper.make_opsetid("", 20)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()
