"""Seconds for the log-likelihood of test pictures, against pythae's `get_nll` on the same weights.

Run as `python -m benchmarks.nll PATH [--preset mlp]`; how to get pythae: `benchmarks/peer.py`.

Each network is trained briefly first, as weights from nowhere have a posterior that no q meets. Both sides then see
the same binarised pictures and the same modules. pythae is called as its own scripts do, under `torch.no_grad()`. Each
side has a process of its own, and ours keeps freed memory, as `vae-train` does.
"""

import math
import statistics
import time
from argparse import ArgumentParser
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import results
from benchmarks.peer import peer
from benchmarks.sides import side
from model import data, nll
from model.parts import Images
from model.pixels import pixels
from model.training import Learner, TrainConfig
from model.vae import VAE, ModelConfig

PRESETS = ("mlp", "residual")
LATENT_DIM = 40

Turn = Callable[[Images, int], tuple[float, float]]
"""Of pictures and a seed: the seconds that it took, and the mean nll in nats."""


def main() -> None:
    """Measure, print a table, keep the figures as JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="what `vae-train fit --data` takes")
    parser.add_argument("--preset", action="append", choices=PRESETS, help="networks to measure (default: all)")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--samples", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side, 2 or more (default 5)")
    parser.add_argument("--steps", type=int, default=400, help="training before the measurement")
    arguments = parser.parse_args()
    if arguments.repeats < 2:
        parser.error(f"--repeats: got {arguments.repeats}, expected 2 or more, as means are told apart by their spread")
    dataset = data.read(arguments.path)
    images = binarised(dataset.test[: arguments.images])
    measured = {}
    for preset in arguments.preset or PRESETS:
        vae = trained(preset, dataset.train, steps=arguments.steps)
        measured[preset] = measure(vae, images, samples=arguments.samples, repeats=arguments.repeats)
    print(f"{dataset.name}, {len(images)} pictures, {arguments.samples:,} samples; {results.on_machine()}\n")
    print(
        results.table(
            ("network", "side", "seconds", "times as fast", "lowest and highest", "nll", "apart"), rows(measured)
        )
    )
    content = {
        "data": dataset.name,
        "images": len(images),
        "samples": arguments.samples,
        "repeats": arguments.repeats,
        "training_steps": arguments.steps,
        "threads": torch.get_num_threads(),
        "networks": measured,
    }
    print("\n" + results.keep("nll", content, lacks=set(PRESETS) - measured.keys()))


def binarised(images: Images) -> Images:
    """Black and white pictures, each pixel white with the probability that its grey says: one draw for all sides."""
    return np.where(np.random.default_rng(0).random(images.shape) * 255 < images, 255, 0).astype(np.uint8)


def trained(preset: str, images: Images, *, steps: int) -> VAE:
    """A network whose q is near its posterior, so that importance weights are even enough to compare means."""
    height, width, channels = images.shape[1:]
    config = ModelConfig(
        height, width, channels, latent_dim=LATENT_DIM, preset=preset, likelihood="bernoulli", sigma=None
    )
    learner = Learner(config, training=TrainConfig(kl_warmup_epochs=0), n_images=len(images))
    for _ in islice(learner.run(images), steps):
        pass
    return learner.average


def measure(vae: VAE, images: Images, *, samples: int, repeats: int) -> dict[str, Any]:
    """Each side's seconds and means, its turns taken one after another."""
    with (
        side(pythae_side, vae, samples=samples, keeps_memory=False) as pythae,
        side(our_side, vae, samples=samples, precision="fp32", keeps_memory=True) as fp32,
        side(our_side, vae, samples=samples, precision="bf16", keeps_memory=True) as bf16,
    ):
        sides = {"pythae": pythae, "fp32": fp32, "bf16": bf16}
        for turn in sides.values():
            turn(images, 0)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        means: dict[str, list[float]] = {name: [] for name in sides}
        order = list(sides)
        for repeat in range(repeats):
            for name in order:
                took, mean = sides[name](images, repeat)
                seconds[name].append(took)
                means[name].append(mean)
            order.reverse()
    ratios = {
        name: [theirs / ours for ours, theirs in zip(taken, seconds["pythae"], strict=True)]
        for name, taken in seconds.items()
    }
    return {
        name: {
            "seconds": [round(taken, 3) for taken in seconds[name]],
            "median_s": round(statistics.median(seconds[name]), 3),
            "times_as_fast": round(statistics.median(ratios[name]), 2),
            "ratios": [round(ratio, 2) for ratio in ratios[name]],
            "nll": means[name],
            "mean_nll": statistics.mean(means[name]),
            "apart_standard_errors": apart(means[name], means["pythae"]),
        }
        for name in sides
    }


def pythae_side(vae: VAE, *, samples: int) -> Turn:
    """A turn of pythae."""
    theirs = peer(vae).eval()

    @torch.no_grad()
    def turn(images: Images, seed: int) -> tuple[float, float]:
        torch.manual_seed(seed)
        began = time.perf_counter()
        # Its batches are 100 rows unless told otherwise.
        log_likelihood = float(theirs.get_nll(pixels(images), n_samples=samples))  # by its sign
        return time.perf_counter() - began, -log_likelihood

    return turn


def our_side(vae: VAE, *, samples: int, precision: nll.Precision) -> Turn:
    """The same of `vae-train evaluate`."""

    def turn(images: Images, seed: int) -> tuple[float, float]:
        began = time.perf_counter()
        found = nll.estimate(vae, images, samples=(samples,), seed=seed, precision=precision)
        return time.perf_counter() - began, -float(found.log_likelihood.mean())

    return turn


def apart(means: list[float], others: list[float]) -> float:
    """The distance of two means, in standard errors of repeats."""
    variance = statistics.variance(means) / len(means) + statistics.variance(others) / len(others)
    return abs(statistics.mean(means) - statistics.mean(others)) / math.sqrt(variance)


def rows(measured: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's rows: one for each network and side."""
    return [
        (
            preset,
            side,
            f"{found['median_s']:.2f}",
            f"{found['times_as_fast']:.1f}",
            f"{min(found['ratios']):.1f} to {max(found['ratios']):.1f}",
            f"{found['mean_nll']:.2f}",
            f"{found['apart_standard_errors']:.1f} standard errors",
        )
        for preset, sides in measured.items()
        for side, found in sides.items()
    ]


if __name__ == "__main__":
    main()
