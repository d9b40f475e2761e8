"""Every answer passes here: it gets its request id, is counted, and noted in the log and in its trace."""

import re
from collections.abc import Sequence
from random import getrandbits
from time import perf_counter

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Internal
from service.observation.access_log import AccessLog
from service.observation.metrics import NO_ANSWER, OTHER, Metrics
from service.observation.record import Record
from service.observation.traces import Traces

HEADER = b"x-request-id"
_ACCEPTED = re.compile(rb"[\x21-\x7e]{1,128}")


class Observed:
    """ASGI middleware, outside all others of ours. It looks a path up in the table of routes itself, for a guard may
    refuse a request before the router sees it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        routes: Sequence[Route],
        metrics: Metrics,
        access_log: AccessLog | None,
        traces: Traces | None,
    ) -> None:
        self._app = app
        self._fixed = frozenset(route.path for route in routes if not route.param_convertors)
        self._others = [route for route in routes if route.param_convertors]
        self._metrics = metrics
        self._access_log = access_log
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        record = Record(request_id.decode("ascii"), began=perf_counter())
        scope.setdefault("state", {})["record"] = record
        status: int | None = None

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (HEADER, request_id)]
                if self._traces:
                    self._traces.tell(record, scope, route=self._route(scope))
            await send(message)

        self._metrics.in_progress.add(1)
        try:
            await self._app(scope, receive, send_observed)
        except Exception:
            if status is None:
                record.problem = Internal.kind  # outside of here, by the handler of what nobody foresaw
            raise
        finally:
            self._metrics.in_progress.add(-1)
            seconds = perf_counter() - record.began
            route = self._route(scope)
            if status is None:
                status = Internal.status if record.problem == Internal.kind else NO_ANSWER
                if self._traces:
                    self._traces.tell(record, scope, route=route)
            route = route or OTHER
            self._metrics.answered(record, route=route, status=status, seconds=seconds)
            if self._access_log:
                self._access_log.note(scope, record, route=route, status=status, seconds=seconds)

    def _route(self, scope: Scope) -> str | None:
        """The name of the path that was asked for; none if there is no such path here."""
        path: str = scope["path"]
        if path in self._fixed:
            return path
        return next((route.path for route in self._others if route.path_regex.match(path)), None)


def _request_id(scope: Scope) -> bytes:
    """The caller's own, or a new one where none was sent, or one that is long or not plain text."""
    for name, value in scope["headers"]:
        if name == HEADER:
            if _ACCEPTED.fullmatch(sent := value.strip(b" \t")):
                return bytes(sent)
            break
    return b"%032x" % getrandbits(128)  # a name, not a secret
