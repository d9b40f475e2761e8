"""What a large model costs: minutes and memory until its bundle is proven, seconds a picture when it is served.

Run as `python -m benchmarks.bundles`. The model is diffusers' AutoencoderKL with the widths that the published ones
have, and random weights, which cost what trained ones do.
"""

import os
import subprocess
import time
from argparse import ArgumentParser
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.numpy import load, save

from benchmarks import pictures, results
from benchmarks.requests import PNG, SAFETENSORS
from benchmarks.servers import Request, Server, running, script, serve_command
from service.bundle import read

WIDTHS = (128, 256, 512, 512)
DEFAULT_SIDE = 256
SIDES = (64, 128, 256, 512)


def main() -> None:
    """Measure, print tables, keep the figures as JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="requests of each size (default 3)")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        source, bundle = Path(folder) / "source", Path(folder) / "autoencoder-kl"
        measured: dict[str, Any] = {"widths": WIDTHS, "parameters": _save(source)}
        measured["make"] = _make(source, bundle)
        print(f"AutoencoderKL, {measured['parameters'] / 1e6:.0f} M parameters, {results.on_machine()}\n")
        print(results.table(("vae-export make", "figure"), _rows_of_make(measured["make"])), "\n")
        measured["serve"] = _serve(bundle, repeats=arguments.repeats)
    print(results.table(("vae-serve", "/encode s", "/decode s", "resident MB"), _rows_of_serve(measured["serve"])))
    print("\n" + results.keep("bundles", measured))


def _save(folder: Path) -> int:
    """The number of parameters of a model that is saved in a folder as diffusers saves it."""
    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * len(WIDTHS),
        up_block_types=("UpDecoderBlock2D",) * len(WIDTHS),
        layers_per_block=2,
        latent_channels=4,
        sample_size=DEFAULT_SIDE,
    )
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _make(source: Path, bundle: Path) -> dict[str, Any]:
    """What `vae-export make` took, as a person starts it, and what it measured."""
    began = time.perf_counter()
    process = subprocess.Popen([script("vae-export"), "make", str(source), str(bundle)], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"vae-export make: ended with {os.waitstatus_to_exitcode(status)}")
    manifest = read(bundle).manifest
    return {
        "minutes": round((time.perf_counter() - began) / 60, 2),
        "cpu_minutes": round((used.ru_utime + used.ru_stime) / 60, 2),
        "peak_mb": round(used.ru_maxrss * 1024 / 1e6),
        "bundle_mb": round(sum(file.size_bytes for file in manifest.files.values()) / 1e6),
        "parity": manifest.parity.model_dump(mode="json"),
    }


def _serve(bundle: Path, *, repeats: int) -> dict[str, Any]:
    """What one process of `vae-serve` takes for a picture of each size, one request at a time."""
    with running(serve_command(bundle), ready_within_s=1800) as server:
        ready = {"ready_s": round(server.ready_s, 1), "ready_mb": round(server.resident_mb())}
        return {**ready, "sides": {side: _at(server, side, repeats=repeats) for side in SIDES}}


def _at(server: Server, side: int, *, repeats: int) -> dict[str, float]:
    """Seconds that a request of one picture takes, median, and resident memory after it."""
    encode_s, decode_s = [], []
    for seed in range(repeats):
        picture = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
        taken, answer = _timed(server, Request("/encode?format=safetensors", PNG, pictures.as_png(picture)))
        encode_s.append(taken)
        taken, answer = _timed(server, Request("/decode", SAFETENSORS, save({"z": load(answer)["mu"]})))
        decode_s.append(taken)
        if (shape := pictures.of_png(answer, channels=3).shape) != picture.shape:
            raise RuntimeError(f"/decode: got a picture of {shape}, expected {picture.shape}")
    return {
        "encode_s": round(median(encode_s), 3),
        "decode_s": round(median(decode_s), 3),
        "resident_mb": round(server.resident_mb()),
    }


def _timed(server: Server, request: Request) -> tuple[float, bytes]:
    """Seconds until the whole answer was there, and the answer."""
    began = time.perf_counter()
    answer = server.answer(request)
    return time.perf_counter() - began, answer


def _rows_of_make(made: dict[str, Any]) -> list[tuple[str, str]]:
    parity = made["parity"]
    return [
        ("minutes", f"{made['minutes']:.1f}"),
        ("minutes of all cores together", f"{made['cpu_minutes']:.1f}"),
        ("peak of resident memory, MB", f"{made['peak_mb']:,}"),
        ("bundle, MB", f"{made['bundle_mb']:,}"),
        ("largest difference of mu", f"{parity['mu']['max']:.2g}"),
        ("largest difference of logvar", f"{parity['logvar']['max']:.2g}"),
        ("largest difference of a picture, grey levels", f"{parity['image']['max']:g}"),
        ("proven at rows×height×width", ", ".join("×".join(map(str, shape)) for shape in parity["shapes"])),
    ]


def _rows_of_serve(served: dict[str, Any]) -> list[tuple[str, ...]]:
    sides = [
        (f"{side}×{side}", f"{found['encode_s']:.2f}", f"{found['decode_s']:.2f}", f"{found['resident_mb']:,}")
        for side, found in served["sides"].items()
    ]
    return [(f"ready after {served['ready_s']:.0f} s", "", "", f"{served['ready_mb']:,}"), *sides]


if __name__ == "__main__":
    main()
