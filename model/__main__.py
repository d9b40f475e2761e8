"""vae-train: flags to configs, then train, measure or compare."""

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from model import checkpoint, data, measuring, memory, run
from model.checkpoint import RunConfig
from model.errors import BadSetting
from model.exits import sentences
from model.gaussian import SCALE_HEADS
from model.machine import DEVICES, join
from model.measuring import NllRequest
from model.networks.presets import PRESETS
from model.options import (
    DATA,
    Channels,
    DataPath,
    Depth,
    Features,
    Size,
    given,
    nll_request,
    of_config,
    parse_sigma,
    parse_size,
)
from model.plan import Asked, ResumedRun, to_resume, to_start
from model.schedules import BETA_SCHEDULES
from model.study.plan import Settings as StudySettings
from model.study.plan import plan as plan_study
from model.training import PRECISIONS, Learner, TrainConfig
from model.vae import FAMILIES, LIKELIHOODS, ModelConfig

app = typer.Typer(
    help="Train variational autoencoders and measure them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"vae-train {metadata.version('vaeserve')}")
        raise typer.Exit


@app.callback()
def _prepare(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    memory.keep_freed()


@app.command()
def fit(
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder of the run; becomes a checkpoint.")],
    data_path: DataPath = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last save.")] = False,
    start_from: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Start from the weights of another run.", show_default="random weights"),
    ] = None,
    size: Size = None,
    channels: Channels = None,
    validation: Annotated[
        int | None, typer.Option(help="Training pictures to measure each epoch on instead.", show_default="0", min=0)
    ] = None,
    validation_seed: Annotated[
        int | None, typer.Option(help="Which pictures those are.", show_default="0", min=0)
    ] = None,
    device: Annotated[str, typer.Option(help=f"Where to compute: {', '.join(DEVICES)}.")] = "auto",
    save_every: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="Save at a line of the log, if so long after the last.")
    ] = run.SAVE_EVERY_S,
    family: Annotated[str | None, of_config(ModelConfig, "family", f"{', '.join(FAMILIES)}.")] = None,
    preset: Annotated[str | None, of_config(ModelConfig, "preset", f"Networks: {', '.join(PRESETS)}.")] = None,
    features: Features = None,
    depth: Depth = None,
    latent_dim: Annotated[int | None, of_config(ModelConfig, "latent_dim", "Numbers in one z.")] = None,
    likelihood: Annotated[
        str | None, of_config(ModelConfig, "likelihood", f"p(x given z): {', '.join(LIKELIHOODS)}.")
    ] = None,
    sigma: Annotated[
        str | None, of_config(ModelConfig, "sigma", "Of the gaussian: a standard deviation, learned or optimal.")
    ] = None,
    dequantised: Annotated[
        bool | None, typer.Option("--dequantised", help="Add noise of one grey level, so that bits/dim can be given.")
    ] = None,
    scale_head: Annotated[
        str | None, of_config(ModelConfig, "scale_head", f"What the encoder emits: {', '.join(SCALE_HEADS)}.")
    ] = None,
    epochs: Annotated[int | None, of_config(TrainConfig, "epochs", "Passes over the training pictures.")] = None,
    batch_size: Annotated[int | None, of_config(TrainConfig, "batch_size", "Pictures per step.")] = None,
    accumulate: Annotated[
        int | None, of_config(TrainConfig, "accumulate", "Slices that a step is worked through in.")
    ] = None,
    learning_rate: Annotated[
        float | None, of_config(TrainConfig, "learning_rate", "AdamW's largest step size.")
    ] = None,
    lr_warmup_steps: Annotated[
        int | None, of_config(TrainConfig, "lr_warmup_steps", "Steps in which it rises from 0.")
    ] = None,
    weight_decay: Annotated[float | None, of_config(TrainConfig, "weight_decay", "AdamW's decay.")] = None,
    beta: Annotated[float | None, of_config(TrainConfig, "beta", "Weight of the KL term after its warm-up.")] = None,
    beta_schedule: Annotated[
        str | None, of_config(TrainConfig, "beta_schedule", f"How it rises: {', '.join(BETA_SCHEDULES)}.")
    ] = None,
    kl_warmup_epochs: Annotated[
        float | None, of_config(TrainConfig, "kl_warmup_epochs", "Epochs in which that weight rises from 0.")
    ] = None,
    free_bits: Annotated[
        float | None, of_config(TrainConfig, "free_bits", "Nats of KL per latent dimension that cost nothing more.")
    ] = None,
    iw_samples: Annotated[
        int | None, of_config(TrainConfig, "iw_samples", "Draws of the importance-weighted bound, in a last phase.")
    ] = None,
    iw_epochs: Annotated[float | None, of_config(TrainConfig, "iw_epochs", "Epochs of that last phase.")] = None,
    grad_clip: Annotated[float | None, of_config(TrainConfig, "grad_clip", "Largest norm of the gradient.")] = None,
    average_decay: Annotated[
        float | None, of_config(TrainConfig, "average_decay", "What the averaged weights keep at each step.")
    ] = None,
    precision: Annotated[
        str | None, of_config(TrainConfig, "precision", f"Of the networks: {', '.join(PRECISIONS)}.")
    ] = None,
    compiled: Annotated[
        bool | None, typer.Option("--compile", help="Let torch.compile translate the networks.")
    ] = None,
    processes: Annotated[
        int | None, of_config(TrainConfig, "processes", "Processes that share each step, started by torchrun.")
    ] = None,
    seed: Annotated[int | None, of_config(TrainConfig, "seed", "Where all randomness of the run starts.")] = None,
) -> None:
    """Train a VAE into a checkpoint; Ctrl-C saves, --resume goes on."""
    with sentences():
        asked = Asked(
            model=given(
                family=family,
                preset=preset,
                features=features,
                depth=depth,
                latent_dim=latent_dim,
                likelihood=likelihood,
                sigma=None if sigma is None else parse_sigma(sigma),
                dequantised=dequantised,
                scale_head=scale_head,
            ),
            training=given(
                epochs=epochs,
                batch_size=batch_size,
                accumulate=accumulate,
                learning_rate=learning_rate,
                lr_warmup_steps=lr_warmup_steps,
                weight_decay=weight_decay,
                beta=beta,
                beta_schedule=beta_schedule,
                kl_warmup_epochs=kl_warmup_epochs,
                free_bits=free_bits,
                iw_samples=iw_samples,
                iw_epochs=iw_epochs,
                grad_clip=grad_clip,
                average_decay=average_decay,
                precision=precision,
                compile=compiled,
                processes=processes,
                seed=seed,
            ),
            size=None if size is None else parse_size(size),
            channels=channels,
            n_validation=validation,
            validation_seed=validation_seed,
            start_from=start_from,
        )
        plan = to_resume(out, asked) if resume else to_start(out, asked)
        if isinstance(plan, ResumedRun):
            _require_data(data_path, out, plan.stored)
        machine = join(device, processes=plan.training.processes)
        pictures = _read(data_path, size=plan.size, channels=plan.channels)
        dataset = data.with_validation(pictures, plan.n_validation, seed=plan.validation_seed)
        learner, warnings = plan.learner(out, dataset, machine=machine)
        if machine.is_main:
            for warning in warnings:
                print(f"vae-train: warning: {warning}", file=sys.stderr)
        _train(out, learner, dataset, save_every_s=save_every)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A checkpoint folder.")],
    data_path: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="PATH", help=DATA, show_default="scikit-learn's digits, if it learnt from those"
        ),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of z per picture for the elbo.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Where the draws start.")] = 0,
    device: Annotated[str, typer.Option(help=f"Where to compute: {', '.join(DEVICES)}.")] = "auto",
    nll: Annotated[
        bool, typer.Option("--nll", help="Estimate log p(x) too: takes long, goes on where it stopped.")
    ] = False,
    nll_images: Annotated[
        int | None, typer.Option(min=1, help="Test pictures for that, chosen by the seed.", show_default="all")
    ] = None,
    nll_draws: Annotated[
        int | None, typer.Option(min=1, help="Times that each is binarised or dequantised anew.", show_default="1")
    ] = None,
    nll_samples: Annotated[
        str | None,
        typer.Option(
            metavar="K,…",
            help="Draws of z at which the estimate is read off.",
            show_default=",".join(map(str, NllRequest.samples)),
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help=f"Of the decoder for that: {', '.join(PRECISIONS)}.", show_default=NllRequest.precision),
    ] = None,
) -> None:
    """Measure a checkpoint on test pictures: metrics.json, card.md, pictures/, and a prior fitted to its latents."""
    with sentences():
        request = nll_request(
            is_wanted=nll, images=nll_images, draws=nll_draws, samples=nll_samples, precision=precision
        )
        stored = checkpoint.read_config(folder)
        _require_data(data_path, folder, stored)
        machine = join(device, processes=1)
        dataset = _read(
            data_path,
            size=(stored.model.height, stored.model.width),
            channels=stored.model.channels,
        )
        if len(dataset.train) == stored.data.n_train + stored.data.n_validation:  # other data has no such part
            dataset = data.with_validation(dataset, stored.data.n_validation, seed=stored.data.validation_seed)
        metrics = measuring.measure(folder, dataset=dataset, draws=draws, seed=seed, nll=request, machine=machine)
        if not metrics["protocol"]["of_the_run"]:
            print(
                f"vae-train: warning: these are other pictures than those of {stored.data.name} that {folder} learnt"
                " from and was tested with; its figures, card and fitted prior are now those of these",
                file=sys.stderr,
            )
        print(json.dumps(metrics, indent=2))


@app.command()
def study(
    out: Annotated[Path, typer.Option("--out", metavar="STUDY", help="Folder of the study; new, or one to go on.")],
    data_path: DataPath = None,
    seeds: Annotated[int, typer.Option(help="Times that all is trained, from seeds 0, 1, …")] = StudySettings.seeds,
    epochs: Annotated[
        int | None,
        typer.Option(help="Passes over the pictures.", show_default="5, or as many as make 1,500 steps"),
    ] = None,
    latent_dim: Annotated[
        int, typer.Option(help="Numbers in one z of the models that are measured.")
    ] = StudySettings.latent_dim,
    sketch: Annotated[
        int, typer.Option(help="Training pictures, at most, of models with 2 latents and of the sweep of sigma.")
    ] = StudySettings.sketch,
    preset: Annotated[str, typer.Option(help=f"Networks: {', '.join(PRESETS)}.")] = StudySettings.preset,
    features: Features = None,
    depth: Depth = None,
    batch_size: Annotated[int, typer.Option(help="Pictures per step.")] = StudySettings.batch_size,
    precision: Annotated[
        str, typer.Option(help=f"Of the networks in training: {', '.join(PRECISIONS)}.")
    ] = StudySettings.precision,
    size: Size = None,
    channels: Channels = None,
    device: Annotated[str, typer.Option(help=f"Where to train: {', '.join(DEVICES)}.")] = "auto",
) -> None:
    """Compare autoencoder and VAEs on your pictures, on a page; Ctrl-C saves, the same command goes on."""
    from model.study.make import make  # draws in scikit-learn and more, which other commands do without

    with sentences():
        dataset = _read(data_path, size=None if size is None else parse_size(size), channels=channels)
        plan = plan_study(
            dataset,
            StudySettings(
                seeds=seeds,
                epochs=epochs,
                latent_dim=latent_dim,
                sketch=sketch,
                preset=preset,
                features=StudySettings.features if features is None else features,
                depth=StudySettings.depth if depth is None else depth,
                batch_size=batch_size,
                precision=precision,
            ),
        )
        found = make(out, plan, device=device)
        if isinstance(found, int):
            print("Stopped and saved. The same command goes on from there.", file=sys.stderr)
            raise typer.Exit(128 + found)
        for verdict in found.verdicts:
            print(f"{verdict.word + ':':<16}{verdict.claim.sentence} ({verdict.claim.number})")
        print(f"{out / 'index.html'}: {len(plan.members)} runs in {found.seconds / 60:.1f} minutes")


def _read(path: Path | None, *, size: tuple[int, int] | None, channels: int | None) -> data.Dataset:
    """The data set at a path; broken pictures in it are named."""
    dataset = data.read(path, size=size, channels=channels)
    if dataset.n_skipped:
        named = "".join(f"\n  {name}" for name in dataset.skipped)
        print(f"vae-train: skipped {dataset.n_skipped} broken pictures:{named}", file=sys.stderr)
    return dataset


def _require_data(path: Path | None, folder: Path, stored: RunConfig) -> None:
    """Nothing, if pictures are named where a run has learnt from such.

    Raises:  BadSetting
    """
    if path is None and stored.data.name != data.DIGITS:
        raise BadSetting(f"--data: got none, expected where {stored.data.name} is, from which {folder} has learnt")


def _train(out: Path, learner: Learner, dataset: data.Dataset, *, save_every_s: float) -> None:
    """The run to its end, where the main process measures it, or to the signal that stops it."""
    outcome = run.train(out, learner, dataset, save_every_s=save_every_s)
    learner.machine.leave()
    if not learner.machine.is_main:
        return
    if outcome.signal_number is not None:
        print(
            f"Stopped and saved at step {outcome.step} of {outcome.steps}."
            " The same command with --resume goes on from there.",
            file=sys.stderr,
        )
        raise typer.Exit(128 + outcome.signal_number)
    try:
        metrics = measuring.measure(out, dataset=dataset, machine=learner.machine)
    except KeyboardInterrupt:
        print("Stopped while it was measured. The same command with --resume measures it again.", file=sys.stderr)
        raise
    _report(metrics, folder=out)


def _report(metrics: dict[str, Any], *, folder: Path) -> None:
    bound = active = ""
    if metrics["elbo"] is not None:
        bound = f"elbo {metrics['elbo']:.2f}, kl {metrics['kl']:.2f}, "
        active = f" {metrics['active_units']} of {len(metrics['mu']['mean'])} latents active,"
    print(
        f"{folder}: {bound}recon {metrics['recon']:.2f} nats, psnr {metrics['psnr']:.2f} dB,{active}"
        f" over {metrics['protocol']['images']} test images of {metrics['protocol']['data']}; {folder / 'card.md'}"
    )


if __name__ == "__main__":
    app()
