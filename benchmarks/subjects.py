"""What the service is measured on: a bundle, and the pictures and latents that are sent to it."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from benchmarks import pictures
from benchmarks.servers import ROOT, SHIPPED_BUNDLE, script

Name = Literal["small", "other", "medium", "slow", "fashion"]
NAMES: tuple[Name, ...] = get_args(Name)

_BUNDLES = ROOT / "runs" / "bench"
_REQUESTS = 32


@dataclass(frozen=True)
class Subject:
    """A bundle and what is asked of it.

    Shapes:  images (n, h, w, c) uint8, z (n, latent_dim) float32, n different ones of each
    """

    name: str
    digest: str
    bundle: Path
    images: NDArray[np.uint8]
    z: NDArray[np.float32]


def subject(name: Name) -> Subject:
    """The shipped model with its probe's pictures, or one of `benchmarks/models.py` with drawn ones."""
    bundle = SHIPPED_BUNDLE if name == "fashion" else _made(name)
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    height, width, channels = (manifest["image"][axis] for axis in ("height", "width", "channels"))
    if name == "fashion":
        images = load_file(bundle / "probe.safetensors")["image"]
    else:
        images = np.stack([pictures.drawn((height, width, channels), seed=seed) for seed in range(_REQUESTS)])
    z = np.random.default_rng(0).standard_normal((_REQUESTS, *manifest["latent_shape"]), dtype=np.float32)
    return Subject(name, manifest["digest"], bundle, images, z)


def _made(name: Name) -> Path:
    """A bundle that is made once, and again when its folder is deleted."""
    bundle = _BUNDLES / name
    if not bundle.exists():
        print(f"making {bundle.relative_to(ROOT)}", file=sys.stderr)
        command = [script("vae-export"), "torch", f"benchmarks.models:{name}", str(bundle), "--name", name]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return bundle
