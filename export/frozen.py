"""What an importer hands over: graphs, the source that they were made from, and what a manifest says of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service import manifest

Float32 = NDArray[np.float32]
Uint8 = NDArray[np.uint8]


class CannotImport(Exception):
    """A source that no bundle can be made of. One sentence: the file, what was found, what was expected."""


@dataclass(frozen=True)
class Graphs:
    """The graphs of a model, serialised ONNX. The scorer is None where the source does not say its likelihood."""

    encoder: bytes
    decoder: bytes
    scorer: bytes | None = None


@dataclass(frozen=True)
class Source:
    """The model as it was before it was frozen, on arrays; logvar is None for an autoencoder.

    Shapes:  encode image (n, h, w, c) -> mu, logvar (n, *latent_shape); decode z -> image;
             score image, z -> log p(x given z) (n,) in nats
    """

    encode: Callable[[Uint8], tuple[Float32, Float32 | None]]
    decode: Callable[[Float32], Uint8]
    score: Callable[[Uint8, Float32], Float32] | None = None


@dataclass(frozen=True)
class Described:
    """The manifest's fields that only the source knows, by the manifest's names; None where it does not say."""

    family: str
    image: manifest.ImageSpec
    latent_shape: tuple[int | None, ...]
    prior: str
    source: manifest.Source
    likelihood: manifest.Likelihood | None = None
    scale_head: str | None = None
    logvar_range: tuple[float, float] | None = None
    latent_scale: float | None = None
    latent_shift: float | None = None
    diagnostics: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Frozen:
    """All that a bundle is made of, before anything has been measured.

    `files` travel into the bundle as they are: prior.safetensors, card.md, pictures/NAME.png.

    Shapes:  pictures (n, h, w, c), real ones that the source brings; None if it brings none
    """

    graphs: Graphs
    source: Source
    described: Described
    pictures: Uint8 | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
