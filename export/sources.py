"""Which importer reads a folder, found by what lies in it."""

from pathlib import Path

from export.frozen import CannotImport, Frozen
from export.importers import checkpoint, diffusers, optimum, pythae

# In the order in which they are asked, and what each looks for.
_IMPORTERS = (checkpoint, diffusers, pythae, optimum)
_SOUGHT = (
    "config.json with format, model and training (vae-train)",
    "config.json with _class_name (diffusers)",
    "model_config.json and model.pt (pythae)",
    "vae_encoder/model.onnx and vae_decoder/model.onnx (optimum)",
)


def load(folder: Path) -> Frozen:
    """What is in a folder, frozen.

    Raises:  CannotImport if it is of no known kind, or its importer refuses it; BadCheckpoint likewise
    """
    if not folder.is_dir():
        raise CannotImport(f"{folder}: got {'a file' if folder.exists() else 'nothing'} there, expected a folder")
    for importer in _IMPORTERS:
        if importer.recognises(folder):
            frozen: Frozen = importer.load(folder)
            return frozen
    raise CannotImport(f"{folder}: of no known kind, expected {'; '.join(_SOUGHT)}")
