"""vae-export: checkpoints to bundles."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from export.bundle import CannotWrite
from export.checkpoint import make
from export.verify import NotEqual
from model.errors import BadCheckpoint

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def main() -> None:
    """Freeze a trained model into a bundle that is proven equal to it."""


@app.command("make")
def make_bundle(
    run: Annotated[Path, typer.Argument(help="Folder that vae-train wrote.")],
    bundle: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.")],
    name: Annotated[str | None, typer.Option(help="Name of the model; without it, the bundle folder's.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of weights and data, kept in the manifest.")] = None,
) -> None:
    """A checkpoint folder to a bundle, measured against torch before anything is written."""
    try:
        manifest = make(run, bundle, name=name or bundle.resolve().name, licence=licence)
    except ValidationError as error:
        first = error.errors()[0]
        _stop(f"{'.'.join(map(str, first['loc']))}: got {first['input']!r}, {first['msg']}")
    except (BadCheckpoint, CannotWrite, NotEqual) as error:
        _stop(str(error))
    parity = manifest.parity["fp32"]
    print(f"{bundle}: {manifest.label}")
    print(f"{sum(entry.size_bytes for entry in manifest.files.values()) / 1e6:.2f} MB in {len(manifest.files)} files")
    print(f"largest difference to torch over {parity.pictures} pictures at {parity.batch_rows} rows:")
    print(f"  mu {parity.mu.max:.2g}, logvar {parity.logvar.max:.2g}, pictures {parity.image.max:g} grey levels")


def _stop(sentence: str) -> None:
    typer.echo(f"vae-export: {sentence}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
