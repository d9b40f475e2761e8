"""The bundle format, and reading a bundle with proof that it is what its manifest says."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

FORMAT = 1
MANIFEST = "manifest.json"
ENCODER, DECODER, PROBE = "encoder.onnx", "decoder.onnx", "probe.safetensors"

# A manifest is a few kilobytes; one that is larger is not read into memory.
_MAX_MANIFEST_BYTES = 2**20

# The fields that change answers. The rest (card, probe, metrics, names) may differ under one digest.
_ANSWERING_FIELDS = frozenset(
    {"format", "family", "image", "latent_shape", "likelihood", "prior", "scale_head", "logvar_range"}
)


class BadBundle(Exception):
    """A bundle that must not be served. One sentence: the file, what was found, what was expected."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageSpec(_Part):
    """The shape of one picture on the wire."""

    height: int = Field(ge=1)
    width: int = Field(ge=1)
    channels: Literal[1, 3]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c)."""
        return self.height, self.width, self.channels


class Likelihood(_Part):
    """p(x given z), as the source was trained with it."""

    kind: Literal["gaussian", "bernoulli", "continuous_bernoulli", "logistic"]
    sigma: float | None = Field(None, gt=0, description="of a gaussian, in units of x in [0, 1]")
    binarised_at: int | None = Field(
        None, ge=0, le=255, description="grey level at which the encoder thresholds its input"
    )


class Source(_Part):
    """Where the graphs came from."""

    kind: Literal["vaeserve"]
    version: str
    preset: str


class FileEntry(_Part):
    """What a file of the bundle must be, to the byte."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=1)


class Tolerance(_Part):
    """Largest difference to the source that is allowed: mu and logvar absolute, pictures in grey levels."""

    mu: float = Field(gt=0)
    logvar: float = Field(gt=0)
    image: int = Field(ge=0)


class Difference(_Part):
    """Largest and mean absolute difference that was measured."""

    max: float = Field(ge=0)
    mean: float = Field(ge=0)


class Parity(_Part):
    """What was measured between the graphs and their source when the bundle was made."""

    mu: Difference
    logvar: Difference
    image: Difference
    batch_rows: tuple[int, ...]
    pictures: int


class Diagnostics(_Part):
    """How the latent space is used, measured on test pictures."""

    kl_per_dimension: tuple[float, ...] = Field(description="nats, mean over pictures")
    active_units: int = Field(description="dimensions whose mu varies by more than 0.01 over pictures")
    mu_min: float
    mu_max: float


RelativePath = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*$")]


class Manifest(_Part):
    """`manifest.json`: everything that a service or a client may ask about a bundle."""

    format: Literal[1]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    family: Literal["vae"]
    image: ImageSpec
    latent_shape: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    likelihood: Likelihood
    prior: Literal["standard"]
    scale_head: Literal["logvar", "log_sigma", "variance", "sigma"]
    logvar_range: tuple[float, float]
    files: dict[RelativePath, FileEntry]
    opset: int
    source: Source
    tolerance: dict[Literal["fp32"], Tolerance]
    parity: dict[Literal["fp32"], Parity]
    diagnostics: Diagnostics | None
    metrics: dict[str, Any] | None
    licence: str | None

    @property
    def label(self) -> str:
        """`name@digest`, as `X-Model` carries it."""
        return f"{self.name}@{self.digest}"


@dataclass(frozen=True)
class Probe:
    """A few fixed inputs and what the source made of them.

    Shapes:  image, decoded (n, h, w, c) uint8; mu, logvar, z (n, *latent_shape) float32
    """

    image: NDArray[np.uint8]
    mu: NDArray[np.float32]
    logvar: NDArray[np.float32]
    z: NDArray[np.float32]
    decoded: NDArray[np.uint8]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every byte matched its manifest. Graphs are bytes that nothing has run yet."""

    folder: Path
    manifest: Manifest
    encoder: bytes
    decoder: bytes
    probe: Probe


def digest(manifest: dict[str, Any]) -> str:
    """What identifies answers: sha256 over the graphs' names and hashes and the fields that change answers.

    Takes the manifest as plain JSON, before its digest is known.
    """
    graphs = sorted((name, entry["sha256"]) for name, entry in manifest["files"].items() if _answers(name))
    fields = {name: manifest[name] for name in sorted(_ANSWERING_FIELDS)}
    return hashlib.sha256(json.dumps([graphs, fields], sort_keys=True).encode()).hexdigest()


def _answers(file: str) -> bool:
    return file.endswith(".onnx")


def read(folder: Path) -> Bundle:
    """A bundle, every file of its manifest checked against its size and sha256.

    Raises:  BadBundle with one sentence
    """
    manifest = _read_manifest(folder)
    for required in (ENCODER, DECODER, PROBE):
        if required not in manifest.files:
            raise BadBundle(f"{folder / MANIFEST}: files does not list {required}")
    contents = {name: _read_file(folder / name, entry) for name, entry in manifest.files.items()}
    return Bundle(
        folder=folder,
        manifest=manifest,
        encoder=contents[ENCODER],
        decoder=contents[DECODER],
        probe=_read_probe(folder / PROBE, contents[PROBE], manifest),
    )


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise BadBundle(f"{path}: {error.strerror or error}, expected the manifest of a bundle") from error
    if len(text) > _MAX_MANIFEST_BYTES:
        raise BadBundle(f"{path}: larger than {_MAX_MANIFEST_BYTES} bytes, expected a manifest")
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadBundle(f"{path}: not JSON ({error})") from error
    found = plain.get("format") if isinstance(plain, dict) else None
    if found != FORMAT:
        raise BadBundle(f"{path}: format is {found!r}, this version reads format {FORMAT}")
    try:
        manifest = Manifest.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        place = repr(".".join(str(part) for part in first["loc"]))[1:-1]  # one line, whatever a file is called
        expected = first["msg"][0].lower() + first["msg"][1:]
        raise BadBundle(f"{path}: {place} is {first['input']!r:.200}, {expected}") from error
    if (expected := digest(plain)) != manifest.digest:
        raise BadBundle(f"{path}: digest is {manifest.digest}, its graphs and fields give {expected}")
    return manifest


def _read_file(path: Path, entry: FileEntry) -> bytes:
    try:
        size = path.stat().st_size
        if size != entry.size_bytes:
            raise BadBundle(f"{path}: has {size} bytes, the manifest says {entry.size_bytes}")
        content = path.read_bytes()
    except OSError as error:
        raise BadBundle(f"{path}: {error.strerror or error}, the manifest lists it") from error
    found = hashlib.sha256(content).hexdigest()
    if found != entry.sha256:
        raise BadBundle(f"{path}: sha256 is {found}, the manifest says {entry.sha256}")
    return content


def _read_probe(path: Path, content: bytes, manifest: Manifest) -> Probe:
    try:
        tensors = load(content)
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:  # as in tensors.read
        raise BadBundle(f"{path}: not readable as safetensors ({error})") from error
    rows = len(tensors["image"]) if "image" in tensors and tensors["image"].ndim else 0
    picture, latent = (rows, *manifest.image.shape), (rows, *manifest.latent_shape)
    expected: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
        "image": (np.uint8, picture),
        "mu": (np.float32, latent),
        "logvar": (np.float32, latent),
        "z": (np.float32, latent),
        "decoded": (np.uint8, picture),
    }
    for name, (dtype, shape) in expected.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.dtype != dtype or tensor.shape != shape or rows == 0:
            found = "nothing" if tensor is None else f"{tensor.dtype} {tensor.shape}"
            raise BadBundle(f"{path}: {name} is {found}, expected {dtype.__name__} {shape}, one row or more")
    return Probe(**{name: tensors[name] for name in expected})
