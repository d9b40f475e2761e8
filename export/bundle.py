"""Writing a bundle: graphs, manifest and probe under a temporary name, renamed into place last."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from safetensors.numpy import save

from service.bundle import DECODER, ENCODER, FORMAT, MANIFEST, PROBE, Manifest, Probe, digest


class CannotWrite(Exception):
    """A bundle that cannot be written where it was asked for."""


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


def bundle_files(*, encoder: bytes, decoder: bytes, probe: Probe) -> dict[str, bytes]:
    """The content of every file of a bundle but its manifest."""
    return {ENCODER: encoder, DECODER: decoder, PROBE: save(asdict(probe))}


def write(folder: Path, files: Mapping[str, bytes], manifest: Manifest) -> None:
    """A bundle on disk, whole or not at all.

    Raises:  CannotWrite if the folder exists already
    """
    if folder.exists():
        raise CannotWrite(f"{folder}: exists already, expected a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, content in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
        text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False)
        (partial / MANIFEST).write_text(text + "\n", encoding="utf-8")
        partial.chmod(0o755)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
