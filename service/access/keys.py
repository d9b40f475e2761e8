"""The keys that callers show: a file of their hashes, read again soon after it changes.

A key is 256 random bits, which nobody finds by trying; so a plain SHA-256 is enough to make the file useless to who
reads it. Salt and slow hashes are for what people make up themselves.
"""

import asyncio
import logging
import os
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Any

from service.access.rates import Bucket

logger = logging.getLogger("vaeserve")

# How long a change of the file may go unseen.
_LOOK_EVERY_S = 1.0

# With this a key begins, so that programs that look for secrets in code and logs know one; a name does not.
PREFIX = "vae_"

# Less would make shares for workers and waiting times that are no numbers any more.
LEAST_ROWS_PER_S = 0.001

_NAME = re.compile(rf"(?!{PREFIX})[A-Za-z0-9_-]{{1,64}}")
_HASH = re.compile(r"[0-9a-f]{64}")
_HASH_OF_NOTHING = sha256().hexdigest()  # what a script writes whose variable was not set
_FIELDS = ("sha256", "scopes", "rows_per_s")
_OTHERS_MAY = 0o006  # read it, write it


class BadKeys(Exception):
    """The file of keys cannot be used; at the start, the process stops with this sentence."""


class Scope(StrEnum):
    """What a key is good for."""

    READ = "read"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Key:
    """One key, of which nothing but its hash is known here.

    Units:  rows_per_s engine rows a second, over all workers; None without a bound
    """

    name: str
    sha256: bytes
    scopes: frozenset[Scope]
    rows_per_s: float | None
    bucket: Bucket | None


class Keys:
    """The keys of a file, of whose rates a worker has its part.

    Raises:  BadKeys if the file cannot be used now; later, the keys that were read before stay
    """

    def __init__(self, path: Path, *, workers: int) -> None:
        self._path = path
        self._workers = workers
        self._stamp = _stamp(path)
        self._keys = _read(path, workers=workers, before=())
        self._said = ""  # of what is wrong with the file

    def find(self, token: bytes) -> Key | None:
        """The key that this is; None if it is none. That takes as long for the first as for the last, and for none."""
        digest = sha256(token).digest()
        found = None
        for key in self._keys:  # to the end
            if compare_digest(key.sha256, digest):
                found = key
        return found

    async def watch(self) -> None:
        """Look at the file again and again, requests or none: a key that was taken away is none within a second."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            self.look()

    def look(self) -> None:
        """Read the file if it has changed."""
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        try:
            self._keys = _read(self._path, workers=self._workers, before=self._keys)
        except BadKeys as error:
            if str(error) != self._said:
                said = "keys: %s; the keys that process %d read before stay"
                logger.error(said, error, os.getpid())  # noqa: TRY400  # the sentence is enough
            self._said = str(error)
            if isinstance(error.__cause__, OSError):  # it may be read soon, as it is now
                return
        else:
            self._said = ""
            names = ", ".join(key.name for key in self._keys)
            logger.info("keys: %s read again by process %d: %s", self._path, os.getpid(), names)
        self._stamp = stamp


def line(name: str, token: str, *, scopes: tuple[Scope, ...], rows_per_s: float | None) -> str:
    """The line of the file that admits a key.

    Raises:  BadKeys if the name is none, or the rate
    """
    _require_name(name, "name")
    _rate(rows_per_s, where=name)
    shown = ", ".join(f'"{scope}"' for scope in scopes)
    rate = "" if rows_per_s is None else f", rows_per_s = {rows_per_s:.15g}"
    return f'{name} = {{ sha256 = "{sha256(token.encode()).hexdigest()}", scopes = [{shown}]{rate} }}'


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What differs once the file or its mode has changed, or another one has taken its place."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _read(path: Path, *, workers: int, before: tuple[Key, ...]) -> tuple[Key, ...]:
    """The keys of the file. One that was there before, with the same rate, keeps what it has used of it.

    Raises:  BadKeys
    """
    try:
        mode = path.stat().st_mode & 0o777
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadKeys(f"{path}: {error.strerror}, expected a file of keys") from error
    except UnicodeDecodeError as error:
        raise BadKeys(f"{path}: not readable as TOML: not UTF-8") from error
    # TOMLDecodeError is a ValueError, as is that of a number of thousands of digits; and brackets may be nested.
    except (ValueError, RecursionError) as error:
        raise BadKeys(f"{path}: not readable as TOML: {error}") from error
    if mode & _OTHERS_MAY:
        logger.warning(
            "keys: %s has mode %o, every user of this machine may read or write it, expected 600", path, mode
        )
    if not entries:
        raise BadKeys(f"{path}: got no key, expected at least one")
    buckets = {(key.sha256, key.rows_per_s): key.bucket for key in before}
    names: dict[bytes, str] = {}
    keys = []
    for name, entry in entries.items():
        key = _key(entry, name=name, path=path, workers=workers, buckets=buckets)
        if key.sha256 in names:
            raise BadKeys(f"{path}: got one sha256 for {names[key.sha256]} and {name}, expected a key for each")
        names[key.sha256] = name
        keys.append(key)
    return tuple(keys)


def _key(
    entry: object,
    *,
    name: str,
    path: Path,
    workers: int,
    buckets: Mapping[tuple[bytes, float | None], Bucket | None],
) -> Key:
    """A key from its line. No sentence repeats what stands in the place of a name or a hash, which may be a key."""
    _require_name(name, str(path))
    where = f"{path}: {name}"
    if not isinstance(entry, dict):
        raise BadKeys(f"{where}: got {_kind(entry)}, expected a table with {', '.join(_FIELDS)}")
    if unknown := [field for field in entry if field not in _FIELDS]:
        raise BadKeys(f"{where}: got a field {unknown[0][:64]}, expected none but {', '.join(_FIELDS)}")
    digest = _digest(entry.get("sha256"), where=where)
    rows_per_s = _rate(entry.get("rows_per_s"), where=where)
    bucket = buckets.get((digest, rows_per_s)) or (Bucket(rows_per_s / workers) if rows_per_s else None)
    return Key(name, digest, _scopes(entry.get("scopes"), where=where), rows_per_s, bucket)


def _require_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        expected = f"up to 64 letters, digits, - and _, not {PREFIX} first"
        raise BadKeys(f"{where}: got a name of {len(name)} characters, expected {expected}")


def _digest(sent: Any, *, where: str) -> bytes:
    if not isinstance(sent, str) or not _HASH.fullmatch(sent):
        got = f"{len(sent)} characters" if isinstance(sent, str) else _kind(sent)
        raise BadKeys(f"{where}: sha256: got {got}, expected the 64 hex digits of a key's SHA-256, in lower case")
    if sent == _HASH_OF_NOTHING:
        raise BadKeys(f"{where}: sha256: got that of an empty text, expected a key's")
    return bytes.fromhex(sent)


def _scopes(sent: Any, *, where: str) -> frozenset[Scope]:
    known = [scope.value for scope in Scope]
    if not isinstance(sent, list) or not sent:
        raise BadKeys(f"{where}: scopes: got {_kind(sent)}, expected a list of {' and '.join(known)}")
    for scope in sent:
        if scope not in known:
            raise BadKeys(f"{where}: scopes: got {str(scope)[:32]!r}, expected {' or '.join(known)}")
    return frozenset(map(Scope, sent))


def _rate(sent: Any, *, where: str) -> float | None:
    if sent is None:
        return None
    if (
        isinstance(sent, bool)
        or not isinstance(sent, int | float)
        or not LEAST_ROWS_PER_S <= sent <= sys.float_info.max
    ):
        expected = f"expected engine rows a second, {LEAST_ROWS_PER_S} or more"
        raise BadKeys(f"{where}: rows_per_s: got {str(sent)[:32]}, {expected}")
    return float(sent)


def _kind(value: object) -> str:
    """What stands there, without its content."""
    if value in (None, [], {}):
        return "none"
    return {str: "a text", list: "a list", dict: "a table", bool: "a truth value"}.get(type(value), "a number")
