"""vae-train: flags to configs, and what goes wrong to one sentence."""

import dataclasses
import json
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from model import checkpoint, data, run
from model.checkpoint import DataConfig, RunConfig
from model.errors import BadCheckpoint, BadData, BadSetting, NotANumber
from model.training import TrainConfig
from model.vae import LIKELIHOODS, PRESETS, ModelConfig

app = typer.Typer(help="Train variational autoencoders and measure them.", no_args_is_help=True, add_completion=False)

DataPath = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="A folder of pictures, a folder of IDX .gz files, or an .npz.",
        show_default="scikit-learn's digits",
    ),
]


def _default(kind: type[ModelConfig] | type[TrainConfig], name: str) -> str:
    return str(next(field.default for field in dataclasses.fields(kind) if field.name == name))


def _option(kind: type[ModelConfig] | type[TrainConfig], name: str, flag: str, text: str) -> Any:
    return typer.Option(flag, help=text, show_default=_default(kind, name))


@app.command()
def fit(
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder of the run; becomes a checkpoint.")],
    data_path: DataPath = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last save.")] = False,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Fit pictures to this size.", show_default="their own, if shared")
    ] = None,
    channels: Annotated[
        int | None, typer.Option(help="1 (grey) or 3 (RGB).", show_default="1 if all pictures are grey, else 3")
    ] = None,
    preset: Annotated[
        str | None, _option(ModelConfig, "preset", "--preset", f"Networks: {', '.join(PRESETS)}.")
    ] = None,
    width: Annotated[
        int | None, _option(ModelConfig, "channels_base", "--width", "Channels of the widest feature map.")
    ] = None,
    latent_dim: Annotated[int | None, _option(ModelConfig, "latent_dim", "--latent-dim", "Numbers in one z.")] = None,
    likelihood: Annotated[
        str | None, _option(ModelConfig, "likelihood", "--likelihood", f"p(x given z): {', '.join(LIKELIHOODS)}.")
    ] = None,
    sigma: Annotated[
        float | None, _option(ModelConfig, "sigma", "--sigma", "Standard deviation of the gaussian likelihood.")
    ] = None,
    epochs: Annotated[
        int | None, _option(TrainConfig, "epochs", "--epochs", "Passes over the training pictures.")
    ] = None,
    batch_size: Annotated[int | None, _option(TrainConfig, "batch_size", "--batch-size", "Pictures per step.")] = None,
    learning_rate: Annotated[
        float | None, _option(TrainConfig, "learning_rate", "--learning-rate", "Adam's largest step size.")
    ] = None,
    lr_warmup_steps: Annotated[
        int | None, _option(TrainConfig, "lr_warmup_steps", "--lr-warmup-steps", "Steps in which it rises from 0.")
    ] = None,
    beta: Annotated[
        float | None, _option(TrainConfig, "beta", "--beta", "Weight of the KL term after its warm-up.")
    ] = None,
    kl_warmup_epochs: Annotated[
        float | None,
        _option(TrainConfig, "kl_warmup_epochs", "--kl-warmup-epochs", "Epochs in which that weight rises from 0."),
    ] = None,
    grad_clip: Annotated[
        float | None, _option(TrainConfig, "grad_clip", "--grad-clip", "Largest norm of the gradient.")
    ] = None,
    average_decay: Annotated[
        float | None,
        _option(TrainConfig, "average_decay", "--average-decay", "What the averaged weights keep at each step."),
    ] = None,
    seed: Annotated[
        int | None, _option(TrainConfig, "seed", "--seed", "Where all randomness of the run starts.")
    ] = None,
) -> None:
    """Train a VAE into a checkpoint; Ctrl-C saves, --resume goes on."""
    model_options = {
        "preset": preset,
        "channels_base": width,
        "latent_dim": latent_dim,
        "likelihood": likelihood,
        "sigma": sigma,
    }
    training_options = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "lr_warmup_steps": lr_warmup_steps,
        "beta": beta,
        "kl_warmup_epochs": kl_warmup_epochs,
        "grad_clip": grad_clip,
        "average_decay": average_decay,
        "seed": seed,
    }
    with _sentences():
        stored = checkpoint.read_config(out) if resume else None
        shape = {"height": None, "width": None, "channels": channels}
        if size is not None:
            shape["height"], shape["width"] = _parse_size(size)
        if stored is not None:
            shape = {name: value or getattr(stored.model, name) for name, value in shape.items()}
        dataset = data.read(
            data_path,
            size=(shape["height"], shape["width"]) if shape["height"] and shape["width"] else None,
            channels=shape["channels"],
        )
        config = RunConfig(
            model=_model_config(dataset, _given(model_options), stored=stored),
            training=_training_config(_given(training_options), stored=stored),
            data=DataConfig(
                name=dataset.name, n_train=len(dataset.train), n_test=len(dataset.test), sha256=dataset.sha256
            ),
        )
        learner = run.resume(out, config) if resume else run.start(out, config, dataset=dataset)
        outcome = run.train(out, learner, dataset)
        if outcome.signal_number is not None:
            print(
                f"Stopped and saved at step {outcome.step} of {outcome.steps}."
                " The same command with --resume goes on from there.",
                file=sys.stderr,
            )
            raise typer.Exit(128 + outcome.signal_number)
        _report(run.measure(out, dataset=dataset), folder=out)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A checkpoint folder.")],
    data_path: DataPath = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of z per picture.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Where the draws start.")] = 0,
) -> None:
    """Measure a checkpoint on test pictures; writes metrics.json and pictures/ and prints the metrics."""
    with _sentences():
        model = checkpoint.read_config(folder).model
        dataset = data.read(data_path, size=(model.height, model.width), channels=model.channels)
        print(json.dumps(run.measure(folder, dataset=dataset, draws=draws, seed=seed), indent=2))


def _model_config(dataset: data.Dataset, options: dict[str, Any], *, stored: RunConfig | None) -> ModelConfig:
    height, width, channels = dataset.image_shape
    if options.get("likelihood") == "bernoulli":
        options = {"sigma": None, **options}
    options |= {"height": height, "width": width, "channels": channels}
    return ModelConfig(**options) if stored is None else dataclasses.replace(stored.model, **options)


def _training_config(options: dict[str, Any], *, stored: RunConfig | None) -> TrainConfig:
    return TrainConfig(**options) if stored is None else dataclasses.replace(stored.training, **options)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None:
        raise BadSetting(f"--size: got {text!r}, expected HxW in pixels, as 64x64")
    return int(match[1]), int(match[2])


def _report(metrics: dict[str, Any], *, folder: Path) -> None:
    latent_dim = len(metrics["kl_per_dimension"])
    print(
        f"{folder}: elbo {metrics['elbo']:.2f}, recon {metrics['recon']:.2f}, kl {metrics['kl']:.2f} nats,"
        f" psnr {metrics['psnr']:.2f} dB, {metrics['active_units']} of {latent_dim} latents active,"
        f" over {metrics['protocol']['images']} test images of {metrics['protocol']['data']}"
    )


@contextmanager
def _sentences() -> Iterator[None]:
    """What a person can put right is said in one line, with exit code 2; a run that cannot go on has code 1."""
    try:
        yield
    except (BadSetting, BadData, BadCheckpoint, OSError) as error:
        print(f"vae-train: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    except NotANumber as error:
        print(f"vae-train: {error}; what was saved before is kept", file=sys.stderr)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        raise typer.Exit(128 + signal.SIGINT) from None


if __name__ == "__main__":
    app()
