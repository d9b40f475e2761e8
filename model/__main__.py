"""vae-train: flags to configs, and what goes wrong to one sentence."""

import json
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from model import checkpoint, data, measuring, memory, run
from model.checkpoint import RunConfig
from model.errors import BadCheckpoint, BadData, BadSetting, Died, NotANumber
from model.gaussian import SCALE_HEADS
from model.machine import DEVICES, join
from model.measuring import NllRequest
from model.networks.presets import PRESETS
from model.nll import Precision
from model.plan import Asked, to_resume, to_start
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

# What torch says of memory, on a CPU and on a GPU, and numpy.
_IS_OF_MEMORY = re.compile(r"(?i)MemoryError|out of memory|not enough memory|allocate memory|bad_alloc")

DataPath = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="A folder or zip of pictures, a folder of IDX files, an .npz, a .parquet, or hf:owner/name.",
        show_default="scikit-learn's digits",
    ),
]

Features = Annotated[
    int | None,
    typer.Option(help="Channels of the widest map, or units of a layer.", show_default="the preset's", min=1),
]
Depth = Annotated[
    int | None,
    typer.Option(help="Residual blocks at each size, or hidden layers.", show_default="the preset's", min=1),
]


def _of(kind: type[ModelConfig] | type[TrainConfig], name: str, text: str) -> Any:
    """The option of a field; not given it is None, so that a run's own value is known from one that was asked for."""
    return typer.Option(help=text, show_default=str(getattr(kind, name)))


@app.callback()
def _prepare() -> None:
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
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Fit pictures to this size.", show_default="their own, if shared")
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option(help="1 (grey) or 3 (RGB).", show_default="1 if all pictures are grey, else 3", min=1),
    ] = None,
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
    family: Annotated[str | None, _of(ModelConfig, "family", f"{', '.join(FAMILIES)}.")] = None,
    preset: Annotated[str | None, _of(ModelConfig, "preset", f"Networks: {', '.join(PRESETS)}.")] = None,
    features: Features = None,
    depth: Depth = None,
    latent_dim: Annotated[int | None, _of(ModelConfig, "latent_dim", "Numbers in one z.")] = None,
    likelihood: Annotated[
        str | None, _of(ModelConfig, "likelihood", f"p(x given z): {', '.join(LIKELIHOODS)}.")
    ] = None,
    sigma: Annotated[
        str | None, _of(ModelConfig, "sigma", "Of the gaussian: a standard deviation, learned or optimal.")
    ] = None,
    dequantised: Annotated[
        bool | None, typer.Option("--dequantised", help="Add noise of one grey level, so that bits/dim can be given.")
    ] = None,
    scale_head: Annotated[
        str | None, _of(ModelConfig, "scale_head", f"What the encoder emits: {', '.join(SCALE_HEADS)}.")
    ] = None,
    epochs: Annotated[int | None, _of(TrainConfig, "epochs", "Passes over the training pictures.")] = None,
    batch_size: Annotated[int | None, _of(TrainConfig, "batch_size", "Pictures per step.")] = None,
    accumulate: Annotated[
        int | None, _of(TrainConfig, "accumulate", "Slices that a step is worked through in.")
    ] = None,
    learning_rate: Annotated[float | None, _of(TrainConfig, "learning_rate", "AdamW's largest step size.")] = None,
    lr_warmup_steps: Annotated[
        int | None, _of(TrainConfig, "lr_warmup_steps", "Steps in which it rises from 0.")
    ] = None,
    weight_decay: Annotated[float | None, _of(TrainConfig, "weight_decay", "AdamW's decay.")] = None,
    beta: Annotated[float | None, _of(TrainConfig, "beta", "Weight of the KL term after its warm-up.")] = None,
    beta_schedule: Annotated[
        str | None, _of(TrainConfig, "beta_schedule", f"How it rises: {', '.join(BETA_SCHEDULES)}.")
    ] = None,
    kl_warmup_epochs: Annotated[
        float | None, _of(TrainConfig, "kl_warmup_epochs", "Epochs in which that weight rises from 0.")
    ] = None,
    free_bits: Annotated[
        float | None, _of(TrainConfig, "free_bits", "Nats of KL per latent dimension that cost nothing more.")
    ] = None,
    iw_samples: Annotated[
        int | None, _of(TrainConfig, "iw_samples", "Draws of the importance-weighted bound, in a last phase.")
    ] = None,
    iw_epochs: Annotated[float | None, _of(TrainConfig, "iw_epochs", "Epochs of that last phase.")] = None,
    grad_clip: Annotated[float | None, _of(TrainConfig, "grad_clip", "Largest norm of the gradient.")] = None,
    average_decay: Annotated[
        float | None, _of(TrainConfig, "average_decay", "What the averaged weights keep at each step.")
    ] = None,
    precision: Annotated[
        str | None, _of(TrainConfig, "precision", f"Of the networks: {', '.join(PRECISIONS)}.")
    ] = None,
    compiled: Annotated[
        bool | None, typer.Option("--compile", help="Let torch.compile translate the networks.")
    ] = None,
    processes: Annotated[
        int | None, _of(TrainConfig, "processes", "Processes that share each step, started by torchrun.")
    ] = None,
    seed: Annotated[int | None, _of(TrainConfig, "seed", "Where all randomness of the run starts.")] = None,
) -> None:
    """Train a VAE into a checkpoint; Ctrl-C saves, --resume goes on."""
    with _sentences():
        asked = Asked(
            model=_given(
                family=family,
                preset=preset,
                features=features,
                depth=depth,
                latent_dim=latent_dim,
                likelihood=likelihood,
                sigma=None if sigma is None else _parse_sigma(sigma),
                dequantised=dequantised,
                scale_head=scale_head,
            ),
            training=_given(
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
            size=None if size is None else _parse_size(size),
            channels=channels,
            n_validation=validation,
            validation_seed=validation_seed,
            start_from=start_from,
        )
        plan = to_resume(out, asked) if resume else to_start(out, asked)
        if plan.stored is not None:
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
    data_path: DataPath = None,
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
    with _sentences():
        request = _nll_request(
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
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Fit pictures to this size.", show_default="their own, if shared")
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option(help="1 (grey) or 3 (RGB).", show_default="1 if all pictures are grey, else 3", min=1),
    ] = None,
    device: Annotated[str, typer.Option(help=f"Where to train: {', '.join(DEVICES)}.")] = "auto",
) -> None:
    """Compare autoencoder and VAEs on your pictures, on a page; Ctrl-C saves, the same command goes on."""
    from model.study.make import make  # draws in scikit-learn and more, which other commands do without

    with _sentences():
        dataset = _read(data_path, size=None if size is None else _parse_size(size), channels=channels)
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


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _parse_sigma(text: str) -> float | str:
    """A number if it is one; any other word is the config's to judge."""
    try:
        return float(text)
    except ValueError:
        return text


def _nll_request(
    *, is_wanted: bool, images: int | None, draws: int | None, samples: str | None, precision: str | None
) -> NllRequest | None:
    """What the options of that estimate say, which mean nothing without it."""
    options = {"--nll-images": images, "--nll-draws": draws, "--nll-samples": samples, "--precision": precision}
    given = _given(**options)
    if not is_wanted:
        for name, value in given.items():
            raise BadSetting(f"{name}: got {value!r} without --nll, expected both")
        return None
    return NllRequest(
        n_images=images,
        draws=NllRequest.draws if draws is None else draws,
        samples=NllRequest.samples if samples is None else _parse_samples(samples),
        precision=NllRequest.precision if precision is None else _parse_precision(precision),
    )


def _parse_samples(text: str) -> tuple[int, ...]:
    if re.fullmatch(r"\d{1,9}(,\d{1,9})*", text) is None:
        raise BadSetting(f"--nll-samples: got {text!r}, expected whole numbers between commas, as 128,1000,5000")
    return tuple(sorted(map(int, text.split(","))))


def _parse_precision(text: str) -> Precision:
    if text not in get_args(Precision):
        raise BadSetting(f"--precision: got {text!r}, expected one of {', '.join(get_args(Precision))}")
    return cast("Precision", text)


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise BadSetting(f"--size: got {text!r}, expected HxW in pixels, as 64x64")
    return int(match[1]), int(match[2])


def _report(metrics: dict[str, Any], *, folder: Path) -> None:
    bound = active = ""
    if metrics["elbo"] is not None:
        bound = f"elbo {metrics['elbo']:.2f}, kl {metrics['kl']:.2f}, "
        active = f" {metrics['active_units']} of {len(metrics['mu']['mean'])} latents active,"
    print(
        f"{folder}: {bound}recon {metrics['recon']:.2f} nats, psnr {metrics['psnr']:.2f} dB,{active}"
        f" over {metrics['protocol']['images']} test images of {metrics['protocol']['data']}; {folder / 'card.md'}"
    )


@contextmanager
def _sentences() -> Iterator[None]:
    """What a person can put right is said in one line, with exit code 2; a run that cannot go on has code 1."""
    try:
        yield
    except OSError as error:
        print(f"vae-train: {f'{error.filename}: {error.strerror}' if error.filename else error}", file=sys.stderr)
        raise typer.Exit(2) from error
    except (BadSetting, BadData, BadCheckpoint) as error:
        print(f"vae-train: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    except (NotANumber, Died) as error:
        print(f"vae-train: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    except (MemoryError, RuntimeError) as error:
        if not _IS_OF_MEMORY.search(f"{type(error).__name__}: {error}"):
            raise
        said = " ".join(str(error).split())[:200] or "out of memory"
        print(
            f"vae-train: {said}; smaller pictures (fit --size) take less, and in training smaller batches"
            " (--batch-size, --accumulate)",
            file=sys.stderr,
        )
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        raise typer.Exit(128 + signal.SIGINT) from None


if __name__ == "__main__":
    app()
