"""vae-serve: flags and environment to Settings, then serve."""

import asyncio
import difflib
import logging
import os
import signal
from collections.abc import Iterable
from importlib import metadata
from logging.config import dictConfig
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from service.access.keys import BadKeys
from service.bundle import BadBundle
from service.machine import BadEngine, raise_open_files, require_one_distribution
from service.observation import collector, logs
from service.observation.collector import BadCollector
from service.observation.tally import NoSharedMemory
from service.processes import ports, signals
from service.processes.ports import BadAddress
from service.processes.supervisor import Ended, Supervisor
from service.settings import Settings

logger = logging.getLogger("vaeserve")

# Files that a process has open beside its connections, those that it is about to close among them.
_OTHER_FILES = 250

# Without markup, of which names of extras in brackets would be taken for some.
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _flag(name: str) -> Any:
    """The flag of one setting, with the setting's own words; unset, the environment and the default decide."""
    field = Settings.model_fields[name]
    return typer.Option(help=f"{field.description} Default {field.default}.", show_default=False)


def _show_version(is_wanted: bool | None) -> None:
    if is_wanted:
        typer.echo(f"vae-serve {metadata.version('vaeserve')}")
        raise typer.Exit


@app.command(help="Serve bundles over HTTP. Every flag is also an environment variable, as VAE_PORT.")
def serve(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(help=Settings.model_fields["bundles"].description, show_default=False),
    ] = None,
    host: Annotated[str | None, _flag("host")] = None,
    port: Annotated[int | None, _flag("port")] = None,
    workers: Annotated[str | None, _flag("workers")] = None,
    device: Annotated[str | None, _flag("device")] = None,
    precision: Annotated[str | None, _flag("precision")] = None,
    threads: Annotated[int | None, _flag("threads")] = None,
    max_batch_rows: Annotated[int | None, _flag("max_batch_rows")] = None,
    max_run_pixels: Annotated[int | None, _flag("max_run_pixels")] = None,
    max_request_rows: Annotated[int | None, _flag("max_request_rows")] = None,
    max_queue_rows: Annotated[int | None, _flag("max_queue_rows")] = None,
    timeout_ms: Annotated[int | None, _flag("timeout_ms")] = None,
    max_timeout_ms: Annotated[int | None, _flag("max_timeout_ms")] = None,
    wedge_timeout_s: Annotated[int | None, _flag("wedge_timeout_s")] = None,
    max_body_bytes: Annotated[int | None, _flag("max_body_bytes")] = None,
    max_json_bytes: Annotated[int | None, _flag("max_json_bytes")] = None,
    max_picture_pixels: Annotated[int | None, _flag("max_picture_pixels")] = None,
    max_answer_pixels: Annotated[int | None, _flag("max_answer_pixels")] = None,
    max_connections: Annotated[int | None, _flag("max_connections")] = None,
    max_head_bytes: Annotated[int | None, _flag("max_head_bytes")] = None,
    head_timeout_s: Annotated[int | None, _flag("head_timeout_s")] = None,
    keep_alive_s: Annotated[int | None, _flag("keep_alive_s")] = None,
    transfer_timeout_s: Annotated[int | None, _flag("transfer_timeout_s")] = None,
    min_bytes_per_s: Annotated[int | None, _flag("min_bytes_per_s")] = None,
    api_keys_file: Annotated[Path | None, _flag("api_keys_file")] = None,
    open_metrics: Annotated[bool | None, _flag("open_metrics")] = None,
    cors_origins: Annotated[list[str] | None, _flag("cors_origins")] = None,
    shutdown_pause_s: Annotated[int | None, _flag("shutdown_pause_s")] = None,
    shutdown_timeout_s: Annotated[int | None, _flag("shutdown_timeout_s")] = None,
    log_level: Annotated[str | None, _flag("log_level")] = None,
    log_format: Annotated[str | None, _flag("log_format")] = None,
    access_log: Annotated[bool | None, _flag("access_log")] = None,
    traces: Annotated[bool | None, _flag("traces")] = None,
    _: Annotated[
        bool | None,
        typer.Option("--version", help="Print the version and end.", callback=_show_version, is_eager=True),
    ] = None,
) -> None:
    """Serve until told to stop."""
    given = {name: value for name, value in locals().items() if value is not None}
    signals.end_at(signal.SIGTERM)  # until there is something to finish
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    try:
        settings = Settings(**given)
        onnxruntime = require_one_distribution()
        if settings.traces:
            collector.require()
        sockets = ports.take(settings.host, settings.port)
        dictConfig(logs.config(settings))
        _warn_of_unknown(os.environ)
        _have_files(settings)
        if settings.workers == 1:
            from service.processes import alone  # which needs the onnxruntime that has now been found

            alone.serve(settings, sockets, onnxruntime=onnxruntime)
        else:
            asyncio.run(Supervisor(settings, sockets, onnxruntime=onnxruntime).run())
    except ValidationError as error:
        first = error.errors()[0]
        name, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        _stop(f"{name}: got {first['input']!r}, {message[0].lower()}{message[1:]}")
    except (BadBundle, BadEngine, BadAddress, BadKeys, BadCollector, NoSharedMemory) as error:
        _stop(str(error))
    except Ended as error:
        _stop(str(error), code=error.code)


def _warn_of_unknown(environment: Iterable[str]) -> None:
    """Name variables that look like settings and are none: one that was misspelt would say nothing, keys stay off."""
    known = [f"VAE_{name.upper()}" for name in Settings.model_fields]
    for name in sorted(environment):
        if name.upper().startswith("VAE_") and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1)
            logger.warning(
                "%s: no setting has this name, it is ignored%s", name, f"; is {near[0]} meant?" if near else ""
            )


def _have_files(settings: Settings) -> None:
    """Room for as many connections as may be open, or else a warning: whoever came then would be cut off unanswered."""
    wanted = settings.max_connections + _OTHER_FILES
    if (bound := raise_open_files(wanted)) < wanted:
        logger.warning(
            "open files: got a bound of %d, expected %d for max_connections %d and what else is open; "
            "raise `ulimit -n`, or lower max_connections",
            bound,
            wanted,
            settings.max_connections,
        )


def _stop(sentence: str, *, code: int = 2) -> None:
    typer.echo(f"vae-serve: {sentence}", err=True)
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
