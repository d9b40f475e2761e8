"""The requests that servers are loaded with, several different ones to each verb."""

import json
from collections.abc import Sequence

import numpy as np
from safetensors.numpy import save

from benchmarks import pictures
from benchmarks.servers import Request
from benchmarks.subjects import Subject

PNG, JSON, SAFETENSORS = "image/png", "application/json", "application/vnd.safetensors"
BULK_ROWS = 256
SAMPLE_ROWS = 16

_BOUNDARY = "----benchmark"
FORM = f"multipart/form-data; boundary={_BOUNDARY}"

_BULKS = 4
_SEEDS = 32


def encode(subject: Subject) -> list[Request]:
    """A picture each, as PNG; posteriors as JSON."""
    return [Request("/encode", PNG, pictures.as_png(image)) for image in subject.images]


def encode_in_bulk(subject: Subject) -> list[Request]:
    """256 rows each, safetensors both ways."""
    rows = np.resize(subject.images, (BULK_ROWS, *subject.images.shape[1:]))
    bodies = [save({"images": np.roll(rows, place, axis=0)}) for place in range(_BULKS)]
    return [Request("/encode?format=safetensors", SAFETENSORS, body) for body in bodies]


def decode(subject: Subject) -> list[Request]:
    """A latent each, as JSON; pictures as PNG."""
    return [Request("/decode", JSON, json.dumps({"z": [z.tolist()]}).encode()) for z in subject.z]


def sample(_subject: Subject) -> list[Request]:
    """Sixteen pictures of a seed each, as one PNG."""
    return [Request(f"/sample?n={SAMPLE_ROWS}&seed={seed}") for seed in range(_SEEDS)]


def multipart(name: str, pngs: Sequence[bytes]) -> bytes:
    """A multipart form of pictures, each a part of this name."""
    head = f'Content-Disposition: form-data; name="{name}"; filename="image.png"\r\nContent-Type: {PNG}'
    parts = [f"--{_BOUNDARY}\r\n{head}\r\n\r\n".encode() + png + b"\r\n" for png in pngs]
    return b"".join([*parts, f"--{_BOUNDARY}--\r\n".encode()])
