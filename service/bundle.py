"""A bundle, read with proof that every byte of it is what its manifest says."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from service import files
from service.files import BadBundle as BadBundle  # whoever reads a bundle meets it here
from service.manifest import (
    CARD,
    DECODER,
    ENCODER,
    FORMAT,
    MANIFEST,
    PICTURES,
    PRIOR,
    PROBE,
    SCORER,
    FileEntry,
    Manifest,
    digest,
)

# A manifest is a few kilobytes, and some 300 bytes for each dimension of a latent; one that is larger is not read into
# memory.
_MAX_MANIFEST_BYTES = 2**23
# Two graphs of the size that ONNX can have; what claims more is not read into memory.
_MAX_BUNDLE_BYTES = 2**32


@dataclass(frozen=True)
class Probe:
    """A few fixed inputs and what the source made of them; `log_likelihood` is that of image and z.

    Shapes:  image, decoded (n, h, w, c) uint8; mu, logvar, z (n, *latent_shape) float32; log_likelihood (n,) float32
    """

    image: NDArray[np.uint8]
    mu: NDArray[np.float32]
    logvar: NDArray[np.float32] | None
    z: NDArray[np.float32]
    decoded: NDArray[np.uint8]
    log_likelihood: NDArray[np.float32] | None


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every byte matched its manifest. Graphs are bytes that nothing has run yet; `pictures` are the
    card's, by name, as `pictures/NAME.png`.
    """

    path: Path
    manifest: Manifest
    encoder: bytes
    decoder: bytes
    scorer: bytes | None
    prior: bytes | None
    probe: Probe
    card: bytes | None
    pictures: dict[str, bytes]


def read(path: Path) -> Bundle:
    """A bundle, in a folder or in one zip, every file of its manifest checked against its size and sha256.

    Raises:  BadBundle with one sentence
    """
    with files.opened(path) as source:
        manifest = _read_manifest(source)
        for required in (ENCODER, DECODER, PROBE):
            if required not in manifest.files:
                raise BadBundle(f"{path / MANIFEST}: files does not list {required}")
        if strangers := source.strangers((MANIFEST, *manifest.files)):
            raise BadBundle(f"{path / strangers[0]}: is there, the manifest does not list it")
        claimed = sum(entry.size_bytes for entry in manifest.files.values())
        if claimed > _MAX_BUNDLE_BYTES:
            raise BadBundle(f"{path / MANIFEST}: files have {claimed} bytes, expected at most {_MAX_BUNDLE_BYTES}")
        contents = {name: _read_file(source, name, entry) for name, entry in manifest.files.items()}
    return Bundle(
        path=path,
        manifest=manifest,
        encoder=contents[ENCODER],
        decoder=contents[DECODER],
        scorer=contents.get(SCORER),
        prior=contents.get(PRIOR),
        probe=_read_probe(path / PROBE, contents[PROBE], manifest),
        card=contents.get(CARD),
        pictures={name: content for name, content in contents.items() if name.startswith(PICTURES)},
    )


def tensors_of(content: bytes, path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a file of a bundle, by name.

    Raises:  BadBundle if it is no safetensors
    """
    try:
        return load(content)
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:  # of a header that lies
        raise BadBundle(f"{path}: not readable as safetensors ({error})") from error


def _read_manifest(source: files.Folder | files.Zip) -> Manifest:
    path = source.path / MANIFEST
    try:
        if source.size_bytes(MANIFEST) > _MAX_MANIFEST_BYTES:
            raise BadBundle(f"{path}: larger than {_MAX_MANIFEST_BYTES} bytes, expected a manifest")
        text = source.content(MANIFEST)
    except OSError as error:
        raise BadBundle(f"{path}: {error.strerror or error}, expected the manifest of a bundle") from error
    try:
        plain = json.loads(text)
        orjson.dumps(plain)  # as /models/{name} will: of half a character, or of lists hundreds deep, no JSON is made
    except (ValueError, TypeError, RecursionError) as error:
        raise BadBundle(f"{path}: not JSON ({error})") from error
    found = plain.get("format") if isinstance(plain, dict) else None
    if found != FORMAT:
        raise BadBundle(f"{path}: format is {found!r}, this version reads format {FORMAT}")
    try:
        manifest = Manifest.model_validate(plain)
    except ValidationError as error:
        raise BadBundle(f"{path}: {_first_fault(error)}") from error
    if (expected := digest(plain)) != manifest.digest:
        raise BadBundle(f"{path}: digest is {manifest.digest}, its graphs and fields give {expected}")
    return manifest


def _first_fault(error: ValidationError) -> str:
    """The place, what was found there and what was expected, in one line."""
    first = error.errors()[0]
    place = repr(".".join(str(part) for part in first["loc"]))[1:-1]  # whatever a file is called
    if first["type"] == "value_error":  # of fields that do not fit each other, whose sentence names them
        return f"{place}: {first['ctx']['error']}" if place else str(first["ctx"]["error"])
    return f"{place} is {first['input']!r:.200}, {first['msg'][0].lower()}{first['msg'][1:]}"


def _read_file(source: files.Folder | files.Zip, name: str, entry: FileEntry) -> bytes:
    path = source.path / name
    try:
        size_bytes = source.size_bytes(name)
        if size_bytes != entry.size_bytes:
            raise BadBundle(f"{path}: has {size_bytes} bytes, the manifest says {entry.size_bytes}")
        content = source.content(name)
    except OSError as error:
        raise BadBundle(f"{path}: {error.strerror or error}, the manifest lists it") from error
    found = hashlib.sha256(content).hexdigest()
    if found != entry.sha256:
        raise BadBundle(f"{path}: sha256 is {found}, the manifest says {entry.sha256}")
    return content


def _read_probe(path: Path, content: bytes, manifest: Manifest) -> Probe:
    tensors = tensors_of(content, path)
    image = tensors.get("image", np.empty(0))
    height, width, channels = manifest.image.default_shape
    rows = image.shape[0] if image.ndim == 4 else 0
    if manifest.image.is_open and image.ndim == 4:
        height, width = image.shape[1:3]
    picture, latent = (rows, height, width, channels), (rows, *manifest.latent_shape_of(height, width))
    expected: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
        "image": (np.uint8, picture),
        "mu": (np.float32, latent),
        "z": (np.float32, latent),
        "decoded": (np.uint8, picture),
    }
    if manifest.family == "vae":
        expected["logvar"] = (np.float32, latent)
    if SCORER in manifest.files:
        expected["log_likelihood"] = (np.float32, (rows,))
    for name, (dtype, shape) in expected.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.dtype != dtype or tensor.shape != shape or tensor.size == 0:
            found = "nothing" if tensor is None else f"{tensor.dtype} {tensor.shape}"
            raise BadBundle(f"{path}: {name} is {found}, expected {dtype.__name__} {shape}, one row or more")
    return Probe(**dict.fromkeys(("logvar", "log_likelihood")) | {name: tensors[name] for name in expected})
