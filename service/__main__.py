"""vae-serve: flags and environment to Settings, then serve."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import uvicorn
from pydantic import ValidationError
from uvicorn.config import LOGGING_CONFIG

from service.bundle import BadBundle, Manifest
from service.machine import BadEngine, require_one_distribution
from service.settings import Settings

if TYPE_CHECKING:
    from service.models import Deployment, Model

# Pictures up to here are shown sixteen at a time, and enlarged.
_SMALL_PIXELS = 64 * 64

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _flag(name: str) -> Any:
    """The flag of one setting, with the setting's own words; unset, the environment and the default decide."""
    field = Settings.model_fields[name]
    return typer.Option(help=f"{field.description} Default {field.default}.", show_default=False)


@app.command(help="Serve bundles over HTTP. Every flag is also an environment variable, as VAE_PORT.")
def serve(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(help=Settings.model_fields["bundles"].description, show_default=False),
    ] = None,
    host: Annotated[str | None, _flag("host")] = None,
    port: Annotated[int | None, _flag("port")] = None,
    device: Annotated[str | None, _flag("device")] = None,
    threads: Annotated[int | None, _flag("threads")] = None,
    max_batch_rows: Annotated[int | None, _flag("max_batch_rows")] = None,
    max_run_pixels: Annotated[int | None, _flag("max_run_pixels")] = None,
    max_request_rows: Annotated[int | None, _flag("max_request_rows")] = None,
    max_queue_rows: Annotated[int | None, _flag("max_queue_rows")] = None,
    max_body_bytes: Annotated[int | None, _flag("max_body_bytes")] = None,
    max_picture_pixels: Annotated[int | None, _flag("max_picture_pixels")] = None,
    max_answer_pixels: Annotated[int | None, _flag("max_answer_pixels")] = None,
    log_level: Annotated[str | None, _flag("log_level")] = None,
    access_log: Annotated[bool | None, _flag("access_log")] = None,
) -> None:
    """Serve until told to stop."""
    given = {name: value for name, value in locals().items() if value is not None}
    try:
        settings = Settings(**given)
        onnxruntime = require_one_distribution()
        from service.app import create_app  # needs the onnxruntime that has now been found

        application = create_app(settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        _stop(f"{name}: got {first['input']!r}, {first['msg'][0].lower()}{first['msg'][1:]}")
    except (BadBundle, BadEngine) as error:
        _stop(str(error))
    _announce(application.state.deployment, onnxruntime)
    uvicorn.run(
        application,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        access_log=settings.access_log,
        log_config=_logging(settings.log_level),
        server_header=False,
        proxy_headers=False,
    )


def _stop(sentence: str) -> None:
    typer.echo(f"vae-serve: {sentence}", err=True)
    raise typer.Exit(2)


def _announce(deployment: "Deployment", onnxruntime: str) -> None:
    for model in deployment.models:
        engine = model.engine
        typer.echo(
            f"model {model.label[: len(model.manifest.name) + 13]}: {_shapes(model.manifest)}, "
            f"{engine.provider} ({onnxruntime}), {engine.precision}, {engine.threads} threads",
            err=True,
        )
    settings = deployment.settings
    if settings.port:
        host = "127.0.0.1" if settings.host in {"0.0.0.0", "::"} else settings.host  # noqa: S104  # compared, not bound
        typer.echo(f"try:  {_first_try(deployment.models.default, f'http://{host}:{settings.port}')}", err=True)


def _shapes(manifest: Manifest) -> str:
    """What pictures and latents a model takes, for a person."""
    image = manifest.image
    latents = "x".join("?" if axis is None else str(axis) for axis in manifest.latent_shape)
    if image.max_side is None:
        return f"{'x'.join(map(str, image.shape))}, latents {latents}"
    sizes = f"sizes up to {image.max_side}x{image.max_side}, multiples of {image.stride}"
    return f"{sizes}, {image.channels} channels, latents {latents}"


def _first_try(model: "Model", url: str) -> str:
    """A line that shows what the model does: sixteen small pictures or a large one, where seeds have pictures."""
    if model.manifest.prior == "none" and model.prior is None:
        return f"{url}/docs"
    height, width, _ = model.manifest.image.default_shape
    asked = "n=16&seed=7&scale=4" if height * width <= _SMALL_PIXELS else "seed=7"
    return f"curl -s '{url}/sample?{asked}' -o sample.png"


def _logging(level: str) -> dict[str, Any]:
    """uvicorn's logging, with our own lines beside its."""
    config = copy.deepcopy(LOGGING_CONFIG)
    config["loggers"]["vaeserve"] = {"handlers": ["default"], "level": level.upper(), "propagate": False}
    return config


if __name__ == "__main__":
    app()
