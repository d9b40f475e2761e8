"""A checkpoint measured, in its folder: figures, fitted prior, pictures and card, and log p(x) if asked for."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from model import checkpoint, fingerprints
from model.checkpoint import Checkpoint
from model.data import Dataset
from model.errors import BadData
from model.evaluation import evaluate
from model.generation import Generation, generate
from model.log import read_history
from model.machine import Machine, exact_convolutions
from model.nll import SAMPLES, Precision, estimate, protocol_of
from model.report import card, pictures

# Latents of the fitted prior that a picture shows.
_SHOWN = 200


@dataclasses.dataclass(frozen=True)
class NllRequest:
    """How log p(x) is to be estimated, as `estimate` takes it."""

    n_images: int | None = None
    """Test pictures, or all."""
    draws: int = 1
    """Times that each is binarised or dequantised anew."""
    samples: tuple[int, ...] = SAMPLES
    """Draws of z after which an estimate is read off."""
    precision: Precision = "fp32"
    """Of the decoder."""


@exact_convolutions()
def measure(
    folder: Path,
    *,
    dataset: Dataset,
    draws: int = 1,
    seed: int = 0,
    nll: NllRequest | None = None,
    machine: Machine | None = None,
) -> dict[str, Any]:
    """The metrics of the checkpoint in a folder, written into it with a fitted prior, pictures and a card.

    An estimate of log p(x) goes on where an earlier one of the same protocol stopped; without a request, the estimate
    of an earlier evaluation of these weights on these pictures is kept. `metrics.json` comes last: where it stands,
    prior, pictures and card are of the weights that it names, too.

    Raises:  BadCheckpoint if there is none; BadData if the pictures have another shape; BadSetting if the model has no
             p(x) to estimate
    """
    found = checkpoint.read(folder)
    got, expected = dataset.image_shape, found.config.model.image_shape
    if got != expected:
        raise BadData(f"{dataset.name}: got pictures of shape {got}, expected {expected} as {folder} was trained on")
    if machine is not None:
        found.vae.to(machine.device)
    if nll is not None:  # refused now, if it cannot be, and not after minutes of other figures
        protocol_of(found.vae, dataset.test, **dataclasses.asdict(nll), seed=seed)
    metrics = evaluate(found.vae, dataset.test, data=dataset.name, draws=draws, seed=seed)
    metrics["protocol"]["of_the_run"] = dataset.sha256 == found.config.data.sha256
    generation = generate(found.vae, training=dataset.train, test=dataset.test, seed=seed)
    metrics["samples"] = generation.metrics if generation else None
    metrics["nll"] = (
        _kept_nll(folder, found, dataset) if nll is None else _estimated_nll(folder, found, dataset, nll, seed=seed)
    )
    fitted = generation.fitted if generation else None
    checkpoint.withdraw_metrics(folder)
    checkpoint.write_prior(folder, fitted.tensors() if fitted else None)
    _report(folder, found, dataset, metrics=metrics, generation=generation)
    checkpoint.write_metrics(folder, metrics)
    return metrics


def _estimated_nll(
    folder: Path, found: Checkpoint, dataset: Dataset, request: NllRequest, *, seed: int
) -> dict[str, Any]:
    state = folder / "state" / "nll.safetensors"
    return estimate(found.vae, dataset.test, **dataclasses.asdict(request), seed=seed, state=state).metrics()


def _kept_nll(folder: Path, found: Checkpoint, dataset: Dataset) -> dict[str, Any] | None:
    """The estimate of an earlier evaluation, if these are the weights and pictures that it was made with."""
    kept: dict[str, Any] | None = (found.metrics or checkpoint.withdrawn_metrics(folder) or {}).get("nll")
    if not kept:
        return None
    protocol = kept["protocol"]
    was = protocol["model_sha256"], protocol["data_sha256"]
    return kept if was == (fingerprints.of_model(found.vae), fingerprints.of_images(dataset.test)) else None


def _report(
    folder: Path, found: Checkpoint, dataset: Dataset, *, metrics: dict[str, Any], generation: Generation | None
) -> None:
    """`pictures/` and `card.md`."""
    saved = checkpoint.saved_step(folder)
    # What was logged after the last save is of weights that are lost.
    history = [line for line in read_history(folder) if saved is None or line["step"] <= saved]
    fitted_z = None
    if generation and generation.fitted:
        fitted_z = generation.fitted.sample(_SHOWN, generator=torch.Generator().manual_seed(0))
    drawn = pictures.write_all(
        folder / "pictures",
        found.vae,
        dataset.test,
        metrics=metrics,
        history=history,
        labels=dataset.test_labels,
        fitted_z=fitted_z,
        nearest=generation.nearest if generation else None,
    )
    card.write(
        folder,
        found.config,
        metrics=metrics,
        pictures=drawn,
        n_weights=sum(weight.numel() for weight in found.vae.parameters()),
        history=history,
        machine=checkpoint.machine_facts(folder),
    )
