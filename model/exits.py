"""How a command ends: what goes wrong is one line, with the exit code that says whose turn it is."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from model.errors import BadCheckpoint, BadData, BadSetting, Died, NotANumber

# What torch says of memory, on a CPU and on a GPU, and numpy.
_IS_OF_MEMORY = re.compile(r"(?i)MemoryError|out of memory|not enough memory|allocate memory|bad_alloc")


@contextmanager
def sentences() -> Iterator[None]:
    """What a person can put right is said in one line, with exit code 2; a run that cannot go on has code 1."""
    try:
        yield
    except OSError as error:
        raise _said(f"{error.filename}: {error.strerror}" if error.filename else str(error), code=2) from error
    except (BadSetting, BadData, BadCheckpoint) as error:
        raise _said(str(error), code=2) from error
    except (NotANumber, Died) as error:
        raise _said(str(error), code=1) from error
    except (MemoryError, RuntimeError) as error:
        if not _IS_OF_MEMORY.search(f"{type(error).__name__}: {error}"):
            raise
        said = " ".join(str(error).split())[:200] or "out of memory"
        less = "smaller pictures or networks (fit --size, --features, --latent-dim) take less, and in training"
        raise _said(f"{said}; {less} smaller batches (--batch-size, --accumulate)", code=2) from error
    except KeyboardInterrupt:
        raise typer.Exit(128 + signal.SIGINT) from None


def _said(sentence: str, *, code: int) -> typer.Exit:
    typer.echo(f"vae-train: {sentence}", err=True)
    return typer.Exit(code)
