"""Two versions of a model, and what each of them answers: whoever sees an answer can tell which of them made it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks import pictures, raw
from benchmarks.connections import Answer, as_bytes
from benchmarks.requests import PNG
from benchmarks.servers import Request

# mu is of the order of 1, and no version's comes nearer to the other's than this many times the tolerance.
_TOLERANCE, _APART = 1e-4, 100


@dataclass(frozen=True)
class Versions:
    """A picture's `/encode` for each of several pictures, and mu of each by the digest of the version.

    Shapes:  mu (n, latent_dim) for n requests
    """

    requests: tuple[bytes, ...]
    mu: Mapping[str, NDArray[np.float32]]
    _right: set[tuple[int, str, bytes]] = field(default_factory=set)

    def is_right(self, place: int, answer: Answer) -> bool:
        """Whether the answer to a request is that of the version whose digest it carries."""
        label = answer.header("x-model") or ""
        seen = (place, label, answer.body)
        if seen not in self._right and self._agrees(place, label.rpartition("@")[2], answer.body):
            self._right.add(seen)
        return seen in self._right

    def _agrees(self, place: int, digest: str, body: bytes) -> bool:
        document = orjson.loads(body)
        found = np.ravel(document["mu"])
        expected = self.mu.get(digest)
        return (
            expected is not None
            and document["digest"] == digest
            and found.shape == expected[place].shape
            and bool(np.abs(found - expected[place]).max() < _TOLERANCE)
        )


def versions(bundles: Sequence[Path], images: NDArray[np.uint8]) -> Versions:
    """What onnxruntime makes of pictures with the encoder of each bundle.

    Shapes:  images (n, h, w, c)
    Raises:  ValueError if two of them answer nearly the same
    """
    mu = {_digest(bundle): _mu(bundle, images) for bundle in bundles}
    answered = list(mu.values())
    apart = min(float(np.abs(answered[0] - other).max(axis=1).min()) for other in answered[1:])
    if apart < _APART * _TOLERANCE:
        raise ValueError(f"mu of two versions: got {apart:.2g} apart, expected at least {_APART * _TOLERANCE:g}")
    return Versions(tuple(as_bytes(Request("/encode", PNG, pictures.as_png(image))) for image in images), mu)


def _digest(bundle: Path) -> str:
    digest: str = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["digest"]
    return digest


def _mu(bundle: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    encoder = raw.session(bundle, "encoder", threads=1, spinning=False)
    (mu,) = encoder.run(["mu"], {"image": images})
    return np.reshape(mu, (len(images), -1))
