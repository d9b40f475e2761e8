"""Images a second of a training step, against pythae's trainer with the same networks, batch and optimiser.

Run as `python -m benchmarks.steps PATH [--preset residual]`; how to get pythae: `benchmarks/peer.py`.

Each side trains for so many seconds in turn, after a warm-up, several times over, in the other order every other time.
Both draw batches from the training pictures and step AdamW; ours also binarises anew, clips gradients and averages
weights, pythae's gathers pictures through a DataLoader. Neither validates, logs or saves. Each has a process of its
own, and ours keeps freed memory.
"""

import contextlib
import io
import logging
import statistics
import time
from argparse import ArgumentParser
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pythae.data.datasets import BaseDataset
from pythae.trainers import BaseTrainer, BaseTrainerConfig

from benchmarks import results
from benchmarks.peer import peer
from benchmarks.sides import side
from model import data
from model.parts import Images
from model.pixels import pixels
from model.training import Learner, TrainConfig
from model.vae import VAE, ModelConfig

PRESETS = ("mlp", "residual")
LATENT_DIM = 40
BATCH_SIZE = 128
WARM_UP_STEPS = 3

Turn = Callable[[], float]


def main() -> None:
    """Measure, print a table, keep the figures as JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="what `vae-train fit --data` takes")
    parser.add_argument("--preset", action="append", choices=PRESETS, help="networks to measure (default: all)")
    parser.add_argument("--seconds", type=float, default=10, help="of one turn of one side, about")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    dataset = data.read(arguments.path)
    measured = {}
    with TemporaryDirectory() as folder:  # pythae's trainer wants one
        for preset in arguments.preset or PRESETS:
            config = config_of(preset, dataset.image_shape)
            steps = steps_in(config, dataset.train, seconds=arguments.seconds)
            with (
                side(pythae_side, config, dataset.train, steps=steps, folder=folder, keeps_memory=False) as pythae,
                side(our_side, config, dataset.train, precision="fp32", steps=steps, keeps_memory=True) as fp32,
                side(our_side, config, dataset.train, precision="bf16", steps=steps, keeps_memory=True) as bf16,
            ):
                sides = {"pythae": pythae, "fp32": fp32, "bf16": bf16}
                measured[preset] = measure(sides, repeats=arguments.repeats)
    print(f"{dataset.name}, batches of {BATCH_SIZE}; {results.on_machine()}\n")
    print(results.table(("network", "side", "images/s", "to pythae", "lowest and highest ratio"), rows(measured)))
    content = {
        "data": dataset.name,
        "batch_size": BATCH_SIZE,
        "seconds": arguments.seconds,
        "repeats": arguments.repeats,
        "threads": torch.get_num_threads(),
        "networks": measured,
    }
    print("\n" + results.keep("steps", content, lacks=set(PRESETS) - measured.keys()))


def config_of(preset: str, image_shape: tuple[int, int, int]) -> ModelConfig:
    """The networks that both sides train."""
    height, width, channels = image_shape
    return ModelConfig(
        height, width, channels, latent_dim=LATENT_DIM, preset=preset, likelihood="bernoulli", sigma=None
    )


def measure(sides: dict[str, Turn], *, repeats: int) -> dict[str, Any]:
    """Each side's images/s, its turns taken one after another."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for _ in range(repeats):
        for name in order:
            speeds[name].append(sides[name]())
        order.reverse()
    ratios = {
        name: [ours / theirs for ours, theirs in zip(taken, speeds["pythae"], strict=True)]
        for name, taken in speeds.items()
    }
    return {
        name: {
            "images_per_s": round(statistics.median(taken), 1),
            "ratio": round(statistics.median(ratios[name]), 3),
            "ratios": [round(ratio, 3) for ratio in ratios[name]],
        }
        for name, taken in speeds.items()
    }


def steps_in(config: ModelConfig, images: Images, *, seconds: float) -> int:
    """Steps that a turn of about so many seconds has."""
    steps = Learner(config, training=TrainConfig(batch_size=BATCH_SIZE), n_images=len(images)).run(images)
    next(steps)
    began = time.perf_counter()
    for _ in islice(steps, WARM_UP_STEPS):
        pass
    return max(1, round(seconds * WARM_UP_STEPS / (time.perf_counter() - began)))


def our_side(config: ModelConfig, images: Images, *, precision: str, steps: int) -> Turn:
    """A turn of `vae-train`'s loop: images/s."""
    training = TrainConfig(epochs=10_000, batch_size=BATCH_SIZE, precision=precision)
    reports = Learner(config, training=training, n_images=len(images)).run(images)
    for _ in islice(reports, WARM_UP_STEPS):
        pass

    def turn() -> float:
        began = time.perf_counter()
        seen = sum(report.n for report in islice(reports, steps))
        return seen / (time.perf_counter() - began)

    return turn


def pythae_side(config: ModelConfig, images: Images, *, steps: int, folder: str) -> Turn:
    """A turn of pythae's trainer, one of its epochs over as many batches: images/s."""
    logging.disable(logging.INFO)  # its trainer announces itself
    x = pixels(images[: steps * BATCH_SIZE])
    settings = BaseTrainerConfig(
        output_dir=folder,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=TrainConfig().learning_rate,
        optimizer_cls="AdamW",
        optimizer_params={"weight_decay": 0.0},
        no_cuda=True,
    )
    trainer = BaseTrainer(peer(VAE(config)), BaseDataset(x, torch.zeros(len(x))), training_config=settings)
    trainer.prepare_training()

    def turn() -> float:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar has no switch
            began = time.perf_counter()
            trainer.train_step(1)
            return len(x) / (time.perf_counter() - began)

    turn()
    return turn


def rows(measured: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's rows: one for each network and side."""
    return [
        (
            preset,
            side,
            f"{found['images_per_s']:,.0f}",
            f"{found['ratio']:.2f}",
            f"{min(found['ratios']):.2f} to {max(found['ratios']):.2f}",
        )
        for preset, sides in measured.items()
        for side, found in sides.items()
    ]


if __name__ == "__main__":
    main()
