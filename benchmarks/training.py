"""Seconds that `vae-train fit` takes for an epoch of its default preset on the training pictures of a folder.

Run as `python -m benchmarks.training PATH [--steps N]`.
"""

import time
from argparse import ArgumentParser
from itertools import islice
from pathlib import Path

import torch

from benchmarks import results
from model import data, memory
from model.training import Learner, TrainConfig
from model.vae import ModelConfig

WARM_UP_STEPS = 10


def main() -> None:
    """Measure, print a table, keep the figures as JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="what `vae-train fit --data` takes")
    parser.add_argument("--steps", type=int, help="measure so many steps of the epoch (default: all)")
    arguments = parser.parse_args()
    memory.keep_freed()  # as the command does
    dataset = data.read(arguments.path)
    height, width, channels = dataset.image_shape
    config = ModelConfig(height=height, width=width, channels=channels)
    learner = Learner(config, training=TrainConfig(), n_images=len(dataset.train))
    steps = min(arguments.steps or learner.steps_per_epoch, learner.steps_per_epoch)
    reports = learner.run(dataset.train)
    for _ in islice(reports, WARM_UP_STEPS):
        pass
    began = time.perf_counter()
    seen = sum(report.n for report in islice(reports, steps))
    spent_s = time.perf_counter() - began
    epoch_s = spent_s * len(dataset.train) / seen
    print(f"{dataset.name}, preset {config.preset}, batches of {learner.training.batch_size}; {results.on_machine()}\n")
    print(
        results.table(
            ("what", "figure"),
            [
                ("seconds an epoch", f"{epoch_s:.1f}"),
                ("images/s", f"{seen / spent_s:,.0f}"),
                ("steps measured, of an epoch", f"{steps} of {learner.steps_per_epoch}"),
                ("threads", str(torch.get_num_threads())),
            ],
        )
    )
    content = {
        "data": dataset.name,
        "preset": config.preset,
        "images": len(dataset.train),
        "steps_measured": steps,
        "threads": torch.get_num_threads(),
        "epoch_s": round(epoch_s, 2),
        "images_per_s": round(seen / spent_s, 1),
    }
    lacks = {"steps of the epoch"} if steps < learner.steps_per_epoch else ()
    print("\n" + results.keep("training", content, lacks=lacks))


if __name__ == "__main__":
    main()
