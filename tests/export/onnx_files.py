"""Small encoders and decoders in ONNX files, written as text, with random weights from a seed."""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

SHAPE = (8, 6, 3)
LATENT_DIM = 4
# What an encoder does to the raw output of its second head.
HEADS = {"logvar": "Identity", "log_sigma": "Identity", "variance": "Exp", "sigma": "Softplus"}


def parsed(text: str, weights: dict[str, NDArray], *, opset: int = 17, ir_version: int = 8) -> ModelProto:
    """A graph in the text form of ONNX, with its weights."""
    model = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n{text}')
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return model


def saved(model: ModelProto, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def encoder(*, head: str = "logvar", layout: str = "nchw", batch: int | str = "n", **versions: int) -> ModelProto:
    """Pictures in a range to `z_mean` and `z_scale`: a convolution, and a matrix to each."""
    height, width, channels = SHAPE
    axes = [channels, height, width] if layout == "nchw" else [height, width, channels]
    first = "x = Identity(picture)" if layout == "nchw" else "x = Transpose <perm = [0, 3, 1, 2]> (picture)"
    text = f"""
    encoder (float[{batch}, {", ".join(map(str, axes))}] picture)
        => (float[{batch}, {LATENT_DIM}] z_mean, float[{batch}, {LATENT_DIM}] z_scale)
    {{
        {first}
        c = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, kernel)
        r = Relu(c)
        f = Flatten(r)
        z_mean = MatMul(f, a)
        raw = MatMul(f, b)
        z_scale = {HEADS[head]}(raw)
    }}"""
    weights = {
        "kernel": normal((5, channels, 3, 3), fan_in=9 * channels),
        "a": normal((5 * height * width // 4, LATENT_DIM), seed=1),
        "b": normal((5 * height * width // 4, LATENT_DIM), seed=2),
    }
    return parsed(text, weights, **versions)


def decoder(*, op: str = "Sigmoid", layout: str = "nchw", batch: int | str = "n", **versions: int) -> ModelProto:
    """Latents `z` to pictures in a range: a matrix, and the operator that keeps to the range."""
    height, width, channels = SHAPE
    axes = [channels, height, width] if layout == "nchw" else [height, width, channels]
    shape = ", ".join(map(str, axes))
    rows = batch if isinstance(batch, int) else -1
    text = f"""
    decoder (float[{batch}, {LATENT_DIM}] z) => (float[{batch}, {shape}] picture)
    {{
        h = MatMul(z, d)
        shape = Constant <value = int64[4] {{{rows}, {shape}}}> ()
        y = Reshape(h, shape)
        picture = {op}(y)
    }}"""
    return parsed(text, {"d": normal((LATENT_DIM, height * width * channels), seed=3)}, **versions)


def normal(shape: tuple[int, ...], *, fan_in: int | None = None, seed: int = 0) -> NDArray[np.float32]:
    scale = np.sqrt(fan_in or shape[0])
    return (np.random.default_rng(seed).standard_normal(shape) / scale).astype(np.float32)


def open_encoder(*, layout: str = "nchw", stride: int = 4) -> ModelProto:
    """Pictures of any size to spatial latents of two channels, one place to stride × stride pixels."""
    picture, latent = ("3, h, w", "2, p, q") if layout == "nchw" else ("h, w, 3", "p, q, 2")
    order = {"nchw": "Identity", "nhwc": "Transpose"}[layout]
    text = f"""
    encoder (float[n, {picture}] picture) => (float[n, {latent}] mu, float[n, {latent}] logvar)
    {{
        x = {order} {"<perm = [0, 3, 1, 2]>" if layout == "nhwc" else ""} (picture)
        c = Conv <strides = [{stride}, {stride}]> (x, kernel)
        m = Conv (c, a)
        v = Conv (c, b)
        mu = {order} {"<perm = [0, 2, 3, 1]>" if layout == "nhwc" else ""} (m)
        logvar = {order} {"<perm = [0, 2, 3, 1]>" if layout == "nhwc" else ""} (v)
    }}"""
    weights = {
        "kernel": normal((5, 3, stride, stride), fan_in=3 * stride**2),
        "a": normal((2, 5, 1, 1), fan_in=5, seed=1),
        "b": normal((2, 5, 1, 1), fan_in=5, seed=2),
    }
    return parsed(text, weights)


def open_decoder(*, layout: str = "nchw", stride: int = 4) -> ModelProto:
    """The way back, to pictures in [-1, 1]."""
    picture, latent = ("3, h, w", "2, p, q") if layout == "nchw" else ("h, w, 3", "p, q, 2")
    order = {"nchw": "Identity", "nhwc": "Transpose"}[layout]
    text = f"""
    decoder (float[n, {latent}] z) => (float[n, {picture}] picture)
    {{
        y = {order} {"<perm = [0, 3, 1, 2]>" if layout == "nhwc" else ""} (z)
        c = ConvTranspose <strides = [{stride}, {stride}]> (y, kernel)
        t = Tanh(c)
        picture = {order} {"<perm = [0, 2, 3, 1]>" if layout == "nhwc" else ""} (t)
    }}"""
    return parsed(text, {"kernel": normal((2, 3, stride, stride), fan_in=2, seed=3)})
