"""A request, read and checked before any job exists: its model, its options, its payload, the form of its answer."""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.requests import Request
from starlette.types import Receive

from service import bodies, forms
from service.batcher import Done
from service.bodies import Body, Named
from service.errors import Fault, Invalid, invalid, too_large
from service.models import Deployment, Model
from service.schemas import Options

O = TypeVar("O", bound=Options, covariant=True)  # noqa: E741

# A caller whose answer takes longer than this is listened to, so that its rows are dropped when it leaves.
PATIENCE_S = 0.05


# Many more than any verb knows; a body of nothing but unknown options must not cost a fault each.
_MAX_OPTIONS = 64


class CallerGone(Exception):
    """The caller closed the connection before its answer was ready. Nobody is left to be told."""


@dataclass(frozen=True)
class Verb(Generic[O]):
    """What a verb knows: its options, the members that its body may carry, the forms of its answer."""

    name: str
    options: type[O]
    takes: frozenset[str]
    forms: tuple[forms.Form, ...]


@dataclass(frozen=True)
class Call(Generic[O]):
    """One request, read. Later stages need nothing else."""

    request: Request
    deployment: Deployment
    model: Model
    options: O
    body: Body
    form: forms.Form
    began: float

    @property
    def is_get(self) -> bool:
        """Whether the request has an address: everything that it asks is in its URL."""
        return self.request.method != "POST"

    def check_rows(self, rows: int) -> None:
        """Refuse a request whose engine rows are over the limit."""
        limit = self.deployment.settings.max_request_rows
        if rows > limit:
            raise too_large("rows", got=rows, limit=limit, unit="rows")

    async def run(self, graph: str, rows: NDArray[Any]) -> Done:
        """The graph's outputs for these rows, as soon as they have been in a batch.

        Raises:  CallerGone if the caller left first
        """
        queue = self.model.encoder if graph == "encoder" else self.model.decoder
        return await _attended(queue.submit(rows), self.request.receive)


async def read(request: Request, verb: Verb[O]) -> Call[O]:
    """A request to a verb, or the problem with it."""
    began = perf_counter()
    deployment: Deployment = request.app.state.deployment
    settings = deployment.settings
    body = bodies.EMPTY
    if request.method == "POST":
        content = await bodies.receive(request, max_bytes=settings.max_body_bytes)
        body = await bodies.parse(content, request.headers, takes=verb.takes, max_parts=settings.max_request_rows)
    query = tuple((name, Named(f"query.{name}", value)) for name, value in request.query_params.multi_items())
    options = _options(verb.options, query + body.options)
    return Call(
        request=request,
        deployment=deployment,
        model=deployment.models.find(options.model),
        options=options,
        body=body,
        form=forms.choose(verb.forms, named=options.format, accept=request.headers.get("accept")),
        began=began,
    )


def _options(model: type[O], sent: Sequence[tuple[str, Named]]) -> O:
    if len(sent) > _MAX_OPTIONS:
        raise invalid("options", got=f"{len(sent)} of them", expected=f"at most {_MAX_OPTIONS}")
    places: dict[str, Named] = {}
    for name, value in sent:
        if name in places:
            raise invalid(value.where, got=f"{name} once more, after {places[name].where}", expected="it once")
        places[name] = value
    try:
        return model.model_validate({name: named.value for name, named in places.items()})
    except ValidationError as error:
        faults = [_fault(places, dict(item), model) for item in error.errors(include_url=False)]
        raise Invalid(
            "; ".join(f"{fault['where']}: got {fault['got']}, expected {fault['expected']}" for fault in faults),
            faults=faults,
        ) from error


def _fault(places: dict[str, Named], error: dict[str, Any], model: type[Options]) -> Fault:
    name, *inner = error["loc"] or ("",)
    where = ".".join([places[name].where if name in places else name, *map(str, inner)])[:200]
    if error["type"] == "extra_forbidden":
        return {"where": where, "got": name[:200], "expected": f"one of {', '.join(model.model_fields)}"}
    expected = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return {"where": where, "got": str(error["input"])[:200], "expected": expected[0].lower() + expected[1:]}


def chosen_seed(seed: int | None) -> int:
    """The seed that was asked for, or a fresh one below 2⁵³, which every JSON reader keeps exact."""
    return secrets.randbelow(2**53) if seed is None else seed


async def _attended(reply: "asyncio.Future[Done]", receive: Receive) -> Done:
    """The reply; when it is slow, listening meanwhile for the caller to leave."""
    listener = _Listener(reply, receive)
    patience = asyncio.get_running_loop().call_later(PATIENCE_S, listener.start)
    try:
        return await reply
    except asyncio.CancelledError:
        if listener.heard:
            raise CallerGone from None
        raise
    finally:
        patience.cancel()
        listener.stop()


class _Listener:
    """Waits for a caller to close its connection, and then takes its job back."""

    def __init__(self, reply: "asyncio.Future[Done]", receive: Receive) -> None:
        self.heard = False
        self._reply = reply
        self._receive = receive
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._listen())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.heard = True
        self._reply.cancel()
