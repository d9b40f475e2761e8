"""Files of keys, and what their owners hold."""

import secrets
from pathlib import Path

from service.access.keys import Scope, line


def tokens(*names: str) -> dict[str, str]:
    """A key for each name, another one in every run."""
    return {name: f"vae_{secrets.token_urlsafe(32)}" for name in names}


def lines(
    held: dict[str, str], *, scopes: tuple[Scope, ...] = (Scope.READ,), rows_per_s: float | None = None
) -> list[str]:
    """The lines of a file that admits these."""
    return [line(name, token, scopes=scopes, rows_per_s=rows_per_s) for name, token in held.items()]


def write(path: Path, written: list[str]) -> Path:
    """The file, in one piece and for its owner alone."""
    beside = path.with_suffix(".new")
    beside.touch(mode=0o600)
    beside.write_text("".join(f"{each}\n" for each in written), encoding="utf-8")
    return beside.replace(path)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}
