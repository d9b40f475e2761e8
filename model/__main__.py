"""vae-train: flags to configs, and what goes wrong to one sentence."""

import dataclasses
import json
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args

import typer

from model import checkpoint, data, fingerprints, memory, run
from model.checkpoint import Checkpoint, DataConfig, Origin, RunConfig
from model.errors import BadCheckpoint, BadData, BadSetting, Died, NotANumber
from model.gaussian import SCALE_HEADS
from model.machine import DEVICES, join
from model.nll import Precision
from model.presets import PRESETS
from model.run import NllRequest
from model.schedules import BETA_SCHEDULES
from model.study.plan import Settings as StudySettings
from model.study.plan import plan as plan_study
from model.training import PRECISIONS, TrainConfig, require_compatible
from model.vae import FAMILIES, LIKELIHOODS, ModelConfig

app = typer.Typer(
    help="Train variational autoencoders and measure them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# What an autoencoder has no use for: its point has no scale, and its loss no KL term.
_OF_A_DENSITY = ("scale_head", "beta", "beta_schedule", "kl_warmup_epochs", "free_bits")

# What torch says of memory, on a CPU and on a GPU, and numpy.
_IS_OF_MEMORY = re.compile(r"(?i)MemoryError|out of memory|not enough memory|allocate memory|bad_alloc")

_Shape = TypeVar("_Shape", tuple[int, int, int], tuple[int | None, int | None, int | None])

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


def _default(kind: type[ModelConfig] | type[TrainConfig], name: str) -> str:
    return str(next(field.default for field in dataclasses.fields(kind) if field.name == name))


def _model(name: str, flag: str, text: str) -> Any:
    return typer.Option(flag, help=text, show_default=_default(ModelConfig, name))


def _training(name: str, flag: str, text: str) -> Any:
    return typer.Option(flag, help=text, show_default=_default(TrainConfig, name))


def _study(name: str, text: str) -> Any:
    return typer.Option(f"--{name.replace('_', '-')}", help=text)


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
        float, typer.Option(metavar="SECONDS", min=0, help="Save at the end of an epoch, if so long after the last.")
    ] = run.SAVE_EVERY_S,
    family: Annotated[str | None, _model("family", "--family", f"{', '.join(FAMILIES)}.")] = None,
    preset: Annotated[str | None, _model("preset", "--preset", f"Networks: {', '.join(PRESETS)}.")] = None,
    features: Features = None,
    depth: Depth = None,
    latent_dim: Annotated[int | None, _model("latent_dim", "--latent-dim", "Numbers in one z.")] = None,
    likelihood: Annotated[
        str | None, _model("likelihood", "--likelihood", f"p(x given z): {', '.join(LIKELIHOODS)}.")
    ] = None,
    sigma: Annotated[
        str | None, _model("sigma", "--sigma", "Of the gaussian: a standard deviation, learned or optimal.")
    ] = None,
    dequantised: Annotated[
        bool | None, typer.Option("--dequantised", help="Add noise of one grey level, so that bits/dim can be given.")
    ] = None,
    scale_head: Annotated[
        str | None, _model("scale_head", "--scale-head", f"What the encoder emits: {', '.join(SCALE_HEADS)}.")
    ] = None,
    epochs: Annotated[int | None, _training("epochs", "--epochs", "Passes over the training pictures.")] = None,
    batch_size: Annotated[int | None, _training("batch_size", "--batch-size", "Pictures per step.")] = None,
    accumulate: Annotated[
        int | None, _training("accumulate", "--accumulate", "Slices that a step is worked through in.")
    ] = None,
    learning_rate: Annotated[
        float | None, _training("learning_rate", "--learning-rate", "AdamW's largest step size.")
    ] = None,
    lr_warmup_steps: Annotated[
        int | None, _training("lr_warmup_steps", "--lr-warmup-steps", "Steps in which it rises from 0.")
    ] = None,
    weight_decay: Annotated[float | None, _training("weight_decay", "--weight-decay", "AdamW's decay.")] = None,
    beta: Annotated[float | None, _training("beta", "--beta", "Weight of the KL term after its warm-up.")] = None,
    beta_schedule: Annotated[
        str | None, _training("beta_schedule", "--beta-schedule", f"How it rises: {', '.join(BETA_SCHEDULES)}.")
    ] = None,
    kl_warmup_epochs: Annotated[
        float | None, _training("kl_warmup_epochs", "--kl-warmup-epochs", "Epochs in which that weight rises from 0.")
    ] = None,
    free_bits: Annotated[
        float | None, _training("free_bits", "--free-bits", "Nats of KL per latent dimension that cost nothing more.")
    ] = None,
    iw_samples: Annotated[
        int | None, _training("iw_samples", "--iw-samples", "Draws of the importance-weighted bound, in a last phase.")
    ] = None,
    iw_epochs: Annotated[float | None, _training("iw_epochs", "--iw-epochs", "Epochs of that last phase.")] = None,
    grad_clip: Annotated[float | None, _training("grad_clip", "--grad-clip", "Largest norm of the gradient.")] = None,
    average_decay: Annotated[
        float | None, _training("average_decay", "--average-decay", "What the averaged weights keep at each step.")
    ] = None,
    precision: Annotated[
        str | None, _training("precision", "--precision", f"Of the networks: {', '.join(PRECISIONS)}.")
    ] = None,
    compiled: Annotated[
        bool | None, typer.Option("--compile", help="Let torch.compile translate the networks.")
    ] = None,
    processes: Annotated[
        int | None, _training("processes", "--processes", "Processes that share each step, started by torchrun.")
    ] = None,
    seed: Annotated[int | None, _training("seed", "--seed", "Where all randomness of the run starts.")] = None,
) -> None:
    """Train a VAE into a checkpoint; Ctrl-C saves, --resume goes on."""
    model_options = {
        "family": family,
        "preset": preset,
        "features": features,
        "depth": depth,
        "latent_dim": latent_dim,
        "likelihood": likelihood,
        "sigma": None if sigma is None else _parse_sigma(sigma),
        "dequantised": dequantised,
        "scale_head": scale_head,
    }
    training_options = {
        "epochs": epochs,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "learning_rate": learning_rate,
        "lr_warmup_steps": lr_warmup_steps,
        "weight_decay": weight_decay,
        "beta": beta,
        "beta_schedule": beta_schedule,
        "kl_warmup_epochs": kl_warmup_epochs,
        "free_bits": free_bits,
        "iw_samples": iw_samples,
        "iw_epochs": iw_epochs,
        "grad_clip": grad_clip,
        "average_decay": average_decay,
        "precision": precision,
        "compile": compiled,
        "processes": processes,
        "seed": seed,
    }
    with _sentences():
        stored = checkpoint.read_config(out) if resume else None
        origin = checkpoint.read(start_from) if start_from and not resume else None
        base = stored.model if stored else origin.config.model if origin else None
        if (family or (base.family if base else None)) == "autoencoder":
            _require_none_of_a_density(_given(model_options | training_options))
        training = _training_config(_given(training_options), stored=stored)
        if stored is None:  # what does not hang on the pictures is refused before they are read, which may take hours
            image_shape = _asked(size, channels, base.image_shape if base else (1, 1, 1))
            early = _model_config(image_shape, model_options, base=base)
            require_compatible(early, training)
            if origin is not None:
                run.require_same_model(early, origin)
            run.require_free(out)
        machine = join(device, processes=training.processes)
        height, width, channels = _asked(size, channels, base.image_shape if base else (None, None, None))
        if stored is not None:
            validation = stored.data.n_validation if validation is None else validation
            validation_seed = stored.data.validation_seed if validation_seed is None else validation_seed
        dataset = data.with_validation(
            _read(
                data_path,
                size=(height, width) if height and width else None,
                channels=channels,
            ),
            validation or 0,
            seed=validation_seed or 0,
        )
        config = RunConfig(
            model=_model_config(dataset.image_shape, model_options, base=base),
            training=training,
            data=DataConfig(
                name=dataset.name,
                n_train=len(dataset.train),
                n_validation=len(dataset.validation),
                validation_seed=validation_seed or 0,
                n_test=len(dataset.test),
                sha256=dataset.sha256,
            ),
            origin=_origin(start_from, found=origin, stored=stored, dataset=dataset),
        )
        learner = (
            run.resume(out, config, machine=machine)
            if resume
            else run.start(out, config, dataset=dataset, origin=origin, machine=machine)
        )
        if resume and machine.is_main:
            for change in run.changed_machine(out, learner):
                print(f"vae-train: warning: {change}; the last digits may differ from now on", file=sys.stderr)
        if machine.is_main and not resume:
            for cut in run.cut_warm_ups(learner):
                print(f"vae-train: warning: {cut}", file=sys.stderr)
        outcome = run.train(out, learner, dataset, save_every_s=save_every)
        machine.leave()
        if not machine.is_main:
            return
        if outcome.signal_number is not None:
            print(
                f"Stopped and saved at step {outcome.step} of {outcome.steps}."
                " The same command with --resume goes on from there.",
                file=sys.stderr,
            )
            raise typer.Exit(128 + outcome.signal_number)
        _report(run.measure(out, dataset=dataset, machine=machine), folder=out)


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
        machine = join(device, processes=1)
        dataset = _read(
            data_path,
            size=(stored.model.height, stored.model.width),
            channels=stored.model.channels,
        )
        if len(dataset.train) == stored.data.n_train + stored.data.n_validation:  # other data has no such part
            dataset = data.with_validation(dataset, stored.data.n_validation, seed=stored.data.validation_seed)
        metrics = run.measure(folder, dataset=dataset, draws=draws, seed=seed, nll=request, machine=machine)
        print(json.dumps(metrics, indent=2))


@app.command()
def study(
    out: Annotated[Path, typer.Option("--out", metavar="STUDY", help="Folder of the study; new, or one to go on.")],
    data_path: DataPath = None,
    seeds: Annotated[int, _study("seeds", "Times that all is trained, from seeds 0, 1, …")] = StudySettings.seeds,
    epochs: Annotated[
        int | None,
        typer.Option(help="Passes over the pictures.", show_default="5, or as many as make 1,500 steps"),
    ] = None,
    latent_dim: Annotated[
        int, _study("latent_dim", "Numbers in one z of the models that are measured.")
    ] = StudySettings.latent_dim,
    sketch: Annotated[
        int, _study("sketch", "Training pictures, at most, of models with 2 latents and of the sweep of sigma.")
    ] = StudySettings.sketch,
    preset: Annotated[str, _study("preset", f"Networks: {', '.join(PRESETS)}.")] = StudySettings.preset,
    features: Features = None,
    depth: Depth = None,
    batch_size: Annotated[int, _study("batch_size", "Pictures per step.")] = StudySettings.batch_size,
    precision: Annotated[
        str, _study("precision", f"Of the networks in training: {', '.join(PRECISIONS)}.")
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
            print(f"{verdict.word + ':':<13}{verdict.claim.sentence} ({verdict.claim.number})")
        print(f"{out / 'index.html'}: {len(plan.members)} runs in {found.seconds / 60:.1f} minutes")


def _read(path: Path | None, *, size: tuple[int, int] | None, channels: int | None) -> data.Dataset:
    """The data set at a path; broken pictures in it are named."""
    dataset = data.read(path, size=size, channels=channels)
    if dataset.n_skipped:
        named = "".join(f"\n  {name}" for name in dataset.skipped)
        print(f"vae-train: skipped {dataset.n_skipped} broken pictures:{named}", file=sys.stderr)
    return dataset


def _asked(size: str | None, channels: int | None, otherwise: _Shape) -> _Shape:
    """Height, width and channels as they were asked for."""
    height, width = otherwise[:2] if size is None else _parse_size(size)
    return height, width, channels or otherwise[2]


def _origin(
    folder: Path | None, *, found: Checkpoint | None, stored: RunConfig | None, dataset: data.Dataset
) -> Origin | None:
    """Where a run starts, or did: by then the other run need not be there, and is told by its name."""
    if folder is None:
        return stored.origin if stored else None
    name = folder.resolve().name
    if found is not None:
        return Origin(name, sha256=fingerprints.of_model(found.vae), same_test=run.has_same_test(dataset, found))
    was = stored.origin if stored else None
    return was if was and was.name == name else Origin(name, sha256="", same_test=False)  # another one is refused


def _model_config(
    image_shape: tuple[int, int, int], options: dict[str, Any], *, base: ModelConfig | None
) -> ModelConfig:
    options = _of_likelihood(options) | dict(zip(("height", "width", "channels"), image_shape, strict=True))
    return ModelConfig(**options) if base is None else dataclasses.replace(base, **options)


def _of_likelihood(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; only a gaussian has a sigma by default."""
    given = _given(options)
    return {"sigma": None, **given} if given.get("likelihood", "gaussian") != "gaussian" else given


def _training_config(options: dict[str, Any], *, stored: RunConfig | None) -> TrainConfig:
    return TrainConfig(**options) if stored is None else dataclasses.replace(stored.training, **options)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _require_none_of_a_density(options: dict[str, Any]) -> None:
    for name in _OF_A_DENSITY:
        if name in options:
            got = f"got {options[name]} with an autoencoder"
            raise BadSetting(
                f"{name}: {got}, expected none: its posterior is a point, which has no scale and no KL term"
            )


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
    given = _given(options)
    if not is_wanted:
        for name, value in given.items():
            raise BadSetting(f"{name}: got {value!r} without --nll, expected both")
        return None
    return NllRequest(
        images=images,
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
