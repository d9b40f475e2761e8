"""What a bundle proves by itself, without its source: its bytes, its graphs, its probe, and a run of every shape."""

from pathlib import Path

import numpy as np

from export.runs import LARGEST_RUN_PIXELS, Shape
from export.summary import runs_in_words
from service.bundle import BadBundle, Bundle, read
from service.engine import Engine
from service.machine import available_cores
from service.manifest import MANIFEST, ImageSpec


def prove(path: Path) -> list[str]:
    """A sentence for each thing that was found to be so.

    Raises:  BadBundle with the first that is not
    """
    bundle = read(path)
    manifest = bundle.manifest
    engine = Engine(bundle, device="cpu", threads=available_cores())
    for shape in manifest.parity.shapes:
        _run(engine, bundle, shape)
    graphs = [name for name in manifest.files if name.endswith(".onnx")]
    return [
        f"{len(manifest.files)} files have the size and the sha256 of the manifest",
        f"the digest of graphs and answers is {manifest.digest}",
        f"{', '.join(graphs)} take and give what the manifest says, on {engine.provider}",
        f"{len(bundle.probe.image)} pictures and latents of the probe come out within the tolerance",
        f"every proven shape runs and gives numbers: {runs_in_words(manifest.parity.shapes)}",
    ]


def _run(engine: Engine, bundle: Bundle, shape: Shape) -> None:
    """Every graph on noise of a shape that the manifest names."""
    image, manifest = bundle.manifest.image, bundle.manifest
    rows, height, width = shape
    # One row of the default size is measured however large it is.
    most = 1 if (height, width) == image.default_shape[:2] else 0
    if not _takes(image, height, width) or not 1 <= rows <= max(most, LARGEST_RUN_PIXELS // (height * width)):
        expected = f"rows, height and width of pictures that the model takes, {LARGEST_RUN_PIXELS} pixels at most"
        raise BadBundle(f"{bundle.path / MANIFEST}: parity.shapes has {shape}, expected {expected}")
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (rows, height, width, image.channels), dtype=np.uint8)
    z = generator.standard_normal((rows, *manifest.latent_shape_of(height, width)), dtype=np.float32)
    engine.encoder.tried(noise)
    engine.decoder.tried(z)
    if engine.scorer:
        engine.scorer.tried(noise, z)


def _takes(image: ImageSpec, height: int, width: int) -> bool:
    if image.max_side is None:
        return (height, width) == (image.height, image.width)
    return all(0 < side <= image.max_side and side % image.stride == 0 for side in (height, width))
