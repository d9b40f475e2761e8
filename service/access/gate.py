"""Who may come in: a request shows its key before its body is read."""

from starlette.types import ASGIApp, Receive, Scope, Send

from service import refusals
from service.access import keys
from service.access.keys import Keys
from service.errors import KeyLacksScope, NoKey, Problem

# Probes have no keys. A page has none before its reader types one in, and tells no more than its source does.
_OPEN = frozenset({"/", "/docs", "/openapi.json"})
_OPEN_BENEATH = ("/health/", "/docs/")
_METRICS = "/metrics"
_ADMINS_BENEATH = "/models/"


class Gate:
    """ASGI middleware that passes on requests whose key is known, good for what they ask, and within its rate. Once it
    is known, it is the request's `state["key"]`.

    Source:  RFC 6750 (Bearer), RFC 9110, section 11
    """

    def __init__(self, app: ASGIApp, *, keys: Keys, metrics_open: bool) -> None:
        self._app = app
        self._keys = keys
        self._metrics_open = metrics_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or refuse it unread."""
        if scope["type"] == "http" and not is_open(scope["path"], metrics_open=self._metrics_open):
            try:
                self._admit(scope)
            except Problem as problem:
                await refusals.response(problem, scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        """Refuse a request that may not come in.

        Raises:  NoKey, KeyLacksScope, RateUsedUp
        """
        key = self._keys.find(_token(scope))
        if key is None:
            raise _no_key("got one that is not known here", 'error="invalid_token"')
        scope["state"]["key"] = key
        asked = needed(scope["method"], scope["path"])
        if asked not in key.scopes:
            raise KeyLacksScope(
                f"key: got {key.name}, which is for {' and '.join(sorted(key.scopes))}, expected one for {asked}",
                headers=_challenge(f'error="insufficient_scope", scope="{asked}"'),
            )
        if key.bucket is not None:
            key.bucket.check()


def is_open(path: str, *, metrics_open: bool) -> bool:
    """Whether a path takes no key."""
    return path in _OPEN or path.startswith(_OPEN_BENEATH) or (metrics_open and path == _METRICS)


def needed(method: str, path: str) -> keys.Scope:
    """What a key must be good for: what changes the service is an admin's, all else is reading."""
    return keys.Scope.ADMIN if method == "POST" and path.startswith(_ADMINS_BENEATH) else keys.Scope.READ


def _token(scope: Scope) -> bytes:
    """The key that a request shows.

    Raises:  NoKey
    """
    sent = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(sent) != 1:
        raise _no_key(f"got {len(sent)} of them" if sent else "got none")
    scheme, _, token = sent[0].partition(b" ")
    if scheme.lower() != b"bearer":
        raise _no_key("got an Authorization of another scheme")
    return bytes(token.strip())


def _no_key(got: str, *reason: str) -> NoKey:
    """A 401. It never repeats what was sent."""
    return NoKey(f"key: {got}, expected one as Authorization: Bearer KEY", headers=_challenge(*reason))


def _challenge(*reason: str) -> dict[str, str]:
    return {"WWW-Authenticate": ", ".join(['Bearer realm="vaeserve"', *reason])}
