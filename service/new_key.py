"""A new key, shown once, and the line of the file that admits it: `python -m service.new_key NAME >> FILE`."""

import secrets
import sys
from typing import Annotated

import typer

from service.access.keys import LEAST_ROWS_PER_S, PREFIX, BadKeys, Scope, line

_BYTES = 32

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help="Make a key. It is shown once, on stderr; the line that admits it goes to stdout.")
def make(
    name: Annotated[str, typer.Argument(help="Whose it is: up to 64 letters, digits, - and _.", show_default=False)],
    scope: Annotated[list[Scope] | None, typer.Option(help="What it is good for; may be given twice.")] = None,
    rows_per_s: Annotated[
        float | None,
        typer.Option(min=LEAST_ROWS_PER_S, help="Engine rows a second that it may use. Without it: no bound."),
    ] = None,
) -> None:
    """Make a key."""
    token = PREFIX + secrets.token_urlsafe(_BYTES)
    try:
        made = line(name, token, scopes=tuple(scope or (Scope.READ,)), rows_per_s=rows_per_s)
    except BadKeys as error:
        typer.echo(f"new_key: {error}", err=True)
        raise typer.Exit(2) from error
    try:
        typer.echo(made)
        sys.stdout.flush()
    except OSError as error:  # a key that no file admits is shown to nobody
        typer.echo(f"new_key: {error.strerror}, expected a file that takes the line", err=True)
        sys.stdout = None  # which would fail once more at the end
        raise typer.Exit(2) from error
    typer.echo(f"The key of {name}, which is shown this once: {token}", err=True)


if __name__ == "__main__":
    app()
