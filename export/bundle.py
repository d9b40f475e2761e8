"""Writing a bundle: graphs, manifest and probe in a folder, and nothing at all where something fails on the way."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from safetensors.numpy import save

from export.frozen import Graphs
from export.scorer import without_copies
from service.bundle import Probe
from service.manifest import DECODER, ENCODER, FORMAT, MANIFEST, PROBE, SCORER, Manifest, digest


class CannotWrite(Exception):
    """A bundle that cannot be written where it was asked for, or under the name that was asked for."""


def require_name(name: str) -> None:
    """Nothing, if a model may have the name.

    Raises:  CannotWrite
    """
    try:
        TypeAdapter(Annotated[str, Manifest.model_fields["name"]]).validate_python(name)
    except ValidationError as error:
        expected = "at most 64 letters, digits, '.', '_' and '-', the first of them a letter or a digit"
        raise CannotWrite(f"name: got {name!r}, expected {expected}") from error


def manifest_of(files: Mapping[str, bytes], fields: Mapping[str, Any]) -> Manifest:
    """The manifest of these files: the source's fields, with format, hashes, sizes and digest.

    Raises:  pydantic.ValidationError if a field is missing or wrong
    """
    entries = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        for name, content in sorted(files.items())
    }
    plain = Manifest.model_validate({**fields, "format": FORMAT, "files": entries, "digest": "0" * 64}).model_dump(
        mode="json"
    )
    return Manifest.model_validate(plain | {"digest": digest(plain)})


def bundle_files(graphs: Graphs, *, probe: Probe, others: Mapping[str, bytes]) -> dict[str, bytes]:
    """The content of every file of a bundle but its manifest."""
    scorer = {} if graphs.scorer is None else {SCORER: without_copies(graphs.scorer, decoder=graphs.decoder)}
    tensors = {name: tensor for name, tensor in asdict(probe).items() if tensor is not None}
    return {ENCODER: graphs.encoder, DECODER: graphs.decoder, **scorer, PROBE: save(tensors), **others}


def write(folder: Path, files: Mapping[str, bytes], manifest: Manifest) -> None:
    """A bundle in a new folder.

    Raises:  FileExistsError if it is not new
    """
    folder.mkdir(parents=True)
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False)
    for name, content in {**files, MANIFEST: f"{text}\n".encode()}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A path for a file or folder that becomes the target when all has gone well, and otherwise vanishes.

    Raises:  CannotWrite if the target exists already, or nothing can be made in its place
    """
    require_new(target)
    missing = [place for place in target.absolute().parents if not place.exists()]
    try:
        with _beside(target) as beside:
            place = beside / target.name
            yield place
            _flush(place)
            require_new(target)  # again: it may have come meanwhile
            place.rename(target)
    except BaseException:
        for made in missing:
            with suppress(OSError):  # it was not, or others have put something there
                made.rmdir()
        raise


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder on the disk of a target, for a while."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise CannotWrite(f"{target}: got {error.strerror}, expected a place that can be written to") from error
    with folder as name:
        yield Path(name)


def _flush(place: Path) -> None:
    """Have the disk hold what a file or folder contains: a machine that stops may otherwise know but its name."""
    for path in [place, *place.rglob("*")]:
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def require_new(target: Path) -> None:
    """Nothing, if something can be put at a path.

    Raises:  CannotWrite
    """
    if target.exists() or target.is_symlink():
        raise CannotWrite(f"{target}: exists already, expected a new place")
    above = next(place for place in target.absolute().parents if place.exists())
    if not above.is_dir():
        raise CannotWrite(f"{above}: got a file, expected a folder to write into")
    if not os.access(above, os.W_OK | os.X_OK):
        raise CannotWrite(f"{above}: got a folder that may not be written into, expected one that may")
