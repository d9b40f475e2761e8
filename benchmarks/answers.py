"""Answers compared with onnxruntime's own before anything is timed: a fast server that is wrong wins nothing."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from benchmarks import pictures, raw
from benchmarks.servers import Request, Server
from benchmarks.subjects import Subject


def of_encode(server: Server, requests: Sequence[Request], subject: Subject, connections: int) -> float:
    """The largest difference of mu and logvar, one row each."""
    documents = [json.loads(answer) for answer in server.answers(requests, connections=connections)]
    found = np.array([[np.ravel(document[name]) for document in documents] for name in ("mu", "logvar")])
    return _largest(found, _posteriors(subject, subject.images)[:, np.arange(len(requests)) % len(subject.images)])


def of_bulk(server: Server, requests: Sequence[Request], subject: Subject, connections: int) -> float:
    """The largest difference of mu and logvar, many rows each."""
    answers = server.answers(requests, connections=connections)
    found = [np.stack([load(answer)[name] for name in ("mu", "logvar")]) for answer in answers]
    expected = [_posteriors(subject, load(request.body)["images"]) for request in requests]
    return float(np.max(list(map(_largest, found, expected))))  # NaN, where one is


def of_decode(server: Server, requests: Sequence[Request], subject: Subject, connections: int) -> float:
    """The largest difference of a picture, in grey levels."""
    channels = subject.images.shape[3]
    answers = server.answers(requests, connections=connections)
    found = np.stack([pictures.of_png(answer, channels=channels) for answer in answers])
    return _largest(found, _decoded(subject, subject.z)[np.arange(len(requests)) % len(subject.z)])


def of_sample(server: Server, requests: Sequence[Request], subject: Subject, connections: int) -> float:
    """The largest difference of a grid from the pictures of the same latents, in grey levels."""
    as_tensors = [replace(request, path=f"{request.path}&format=safetensors") for request in requests]
    grids = server.answers(requests, connections=connections)
    latents = [load(answer)["z"] for answer in server.answers(as_tensors, connections=connections)]
    _, height, width, channels = subject.images.shape
    found = [_cut(pictures.of_png(grid, channels=channels), height=height, width=width) for grid in grids]
    return float(np.max([_largest(shown, _decoded(subject, z)) for shown, z in zip(found, latents, strict=True)]))


def _posteriors(subject: Subject, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """mu and logvar.

    Shapes:  images (n, h, w, c) -> (2, n, latent_dim)
    """
    encoder = raw.session(subject.bundle, "encoder", threads=raw.CORES, spinning=False)
    return np.stack(encoder.run(["mu", "logvar"], {"image": images}))


def _decoded(subject: Subject, z: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Pictures.

    Shapes:  z (n, latent_dim) -> (n, h, w, c)
    """
    decoder = raw.session(subject.bundle, "decoder", threads=raw.CORES, spinning=False)
    image: NDArray[np.uint8] = decoder.run(["image"], {"z": z})[0]
    return image


def _cut(grid: NDArray[np.uint8], *, height: int, width: int) -> NDArray[np.uint8]:
    """A grid's pictures, line by line.

    Shapes:  grid (rows·height, columns·width, c) -> (rows·columns, height, width, c)
    """
    rows, columns = grid.shape[0] // height, grid.shape[1] // width
    return grid.reshape(rows, height, columns, width, -1).swapaxes(1, 2).reshape(rows * columns, height, width, -1)


def _largest(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference, infinite where shapes differ."""
    if found.shape != expected.shape:
        return np.inf
    return float(np.abs(found.astype(np.float64) - expected).max())
