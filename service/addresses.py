"""A GET with a seed has an address: its validator, and how long a cache may keep what it answers."""

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version

from starlette.responses import Response

from service import trust
from service.call import Call
from service.schemas import Options
from service.settings import Settings

_VERSION = version("vaeserve")
_YEAR_S = 31_536_000

# What a GET whose seed was drawn tells caches: nobody is ever given the same.
UNKEPT = {"cache-control": "no-store"}


def caching(call: Call[Options]) -> dict[str, str]:
    """What the answer to a GET that has an address tells caches.

    Source:  RFC 9110, section 8.8.3; RFC 9111, section 5.2.2; RFC 8246 (immutable)
    """
    pinned = call.is_of_digest and call.options.model is not None and "@" in call.options.model
    kept = [f"max-age={_YEAR_S}", "immutable"] if pinned else ["no-cache"]
    if call.deployment.settings.is_keyed:
        kept.insert(0, "private")  # what a key opened is kept by who showed it, and by no cache that others share
    elif pinned:
        kept.insert(0, "public")
    return {"cache-control": ", ".join(kept), "etag": _etag(call)}


def asked_for_again(settings: Settings) -> dict[str, str]:
    """What an answer tells caches that may change while its address does not; with keys, of who showed one."""
    return {"cache-control": "private, no-cache" if settings.is_keyed else "no-cache"}


def not_modified(call: Call[Options]) -> Response | None:
    """The 304 for a cache that holds this very answer; None for everyone else."""
    if not call.is_get:
        return None
    held = call.request.headers.getlist("if-none-match")
    if not held:
        return None
    fresh = caching(call)
    if not is_held(held, fresh["etag"]):
        return None
    return Response(status_code=304, headers=identity(call) | fresh)


def is_held(held: Sequence[str], etag: str) -> bool:
    """Whether the lines of an If-None-Match name this validator, by weak comparison.

    Source:  RFC 9110, sections 5.3 and 13.1.2
    """
    # Tags have quotes, so one that is found is one that stands there; a list of thousands is not taken apart.
    return any(etag in line or line.strip() == "*" for line in held)


def identity(call: Call[Options]) -> dict[str, str]:
    """What every answer of a verb says of itself: who made it, and whether `Accept` chose its form."""
    headers = {"x-model": call.model.label}
    if call.options.format is None:
        headers["vary"] = "Accept"
    if call.warnings:
        headers["x-warnings"] = trust.header(call.warnings)
    return headers


def _etag(call: Call[Options]) -> str:
    """A function of everything that the answer's bytes depend on."""
    engine = call.model.engine
    answer = [
        call.model.label,
        _VERSION,
        engine.provider,
        engine.precision,
        call.form.label,
        call.request.scope["path"],
        call.options.model_dump(mode="json", exclude={"model", "format"}),
        *(warning.model_dump() for warning in call.warnings),  # of the manifest, and yet not of its digest
    ]
    text = json.dumps(answer)  # options may be integers of any size, which orjson does not write
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
