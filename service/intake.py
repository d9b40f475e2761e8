"""A request, read and checked before any job exists: its model, its options, its payload, the form of its answer."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.requests import Request

from service import bodies, forms, sizes
from service.access.keys import Key
from service.batcher import Done, Queue
from service.bodies import Body, Named
from service.budget import LOOP_BUDGET_US, spend, spend_in_turn
from service.callers import CallerGone
from service.deadline import Deadline
from service.deployment import Deployment
from service.errors import Fault, Invalid, expectation, invalid, shown, too_large
from service.models import Model
from service.observation import record
from service.schemas import Options, WarningAnswer
from service.settings import Settings

O = TypeVar("O", bound=Options, covariant=True)  # noqa: E741
P = ParamSpec("P")
T = TypeVar("T")

_TIMEOUT_DIGITS = 12  # of X-Timeout-Ms, of which more are no less than any server's bound

# Larger answers are written as there is room: 12 bytes a pixel, as some formats take, are 48 MB here.
_LARGE_ANSWER_PIXELS = 4_000_000

# Headers that may stand on several lines, and that something hangs on.
_LISTS = frozenset({"accept", "content-encoding"})

# Many more than any verb knows; a body of nothing but unknown options must not cost a fault each.
_MAX_OPTIONS = 64


@dataclass(frozen=True)
class Verb(Generic[O]):
    """What a verb knows: its options, the members that its body may carry, the forms of its answer."""

    options: type[O]
    takes: frozenset[str]
    forms: tuple[forms.Form, ...]

    @cached_property
    def defaults(self) -> O:
        """The options of a request that names none."""
        return self.options()


class Call(NamedTuple, Generic[O]):
    """One request, read. Later stages need nothing else."""

    request: Request
    deployment: Deployment
    model: Model
    options: O
    body: Body
    form: forms.Form
    began: float
    deadline: Deadline
    warnings: tuple[WarningAnswer, ...] = ()

    @property
    def is_get(self) -> bool:
        """Whether the request has an address: everything that it asks is in its URL."""
        return self.request.method != "POST"

    def picture_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """(h, w, c) of the pictures that are made from seeds, at the sides that were asked for.

        Raises:  Invalid if the model knows no such side
        """
        default_height, default_width, channels = self.model.manifest.image.default_shape
        heights, widths, _ = self.model.image_axes
        for name, asked, axis in (("height", height, heights), ("width", width, widths)):
            if asked is not None and asked not in axis:
                raise invalid(name, got=asked, expected=sizes.length_in_words(axis))
        return height or default_height, width or default_width, channels

    def check_rows(self, engine_rows: int) -> None:
        """Refuse a request whose engine rows are over the limit."""
        limit = self.deployment.settings.max_request_rows
        if engine_rows > limit:
            raise too_large("rows", got=engine_rows, limit=limit, unit="rows")

    def admit(self, engine_rows: int) -> AbstractContextManager[None]:
        """Room for all engine rows that the request will run, at the expense of its key, where that has a rate.

        Raises:  QueueFull, RateUsedUp
        """
        key: Key | None = self.request.scope["state"].get("key")
        if key is not None and key.bucket is not None:
            self.deployment.lane.require_room(engine_rows)  # what finds no room costs the key nothing
            key.bucket.take(engine_rows)
        return self.deployment.lane.admit(engine_rows)

    async def spend(self, cost_us: float, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `work`, on the event loop or in a thread as `budget.spend` decides.

        Units:   cost_us microseconds
        Raises:  DeadlinePassed
        """
        if cost_us <= LOOP_BUDGET_US:  # as spend does, without another coroutine
            return work(*args, **kwargs)
        return await spend(cost_us, self.deadline, work, *args, **kwargs)

    async def require_caller(self) -> None:
        """Nothing, if somebody still waits for the answer.

        Raises:  CallerGone, DeadlinePassed
        """
        self._require_time()
        if await self.request.is_disconnected():
            raise CallerGone

    async def spend_in_turn(self, weight: int, work: Callable[[], T]) -> T:
        """The result of `work` in a thread, once there is room for so many pixels as `budget.spend_in_turn` says.

        Raises:  DeadlinePassed, CallerGone if nobody waits for it by then
        """
        return await spend_in_turn(
            self.deployment.picture_room, weight, self.deadline, work, require_caller=self.require_caller
        )

    async def spend_on_answer(self, pixels: int, cost_us: float, work: Callable[[], T]) -> T:
        """The result of `work`, which makes so many pixels of the answer: where they are many, in a thread, once there
        is room for them.

        Units:   cost_us microseconds
        Raises:  DeadlinePassed, CallerGone if nobody waits for it by then
        """
        if pixels <= _LARGE_ANSWER_PIXELS:
            return await self.spend(cost_us, work)
        room = self.deployment.answer_room
        return await spend_in_turn(
            room, pixels, self.deadline, work, cost_us=cost_us, require_caller=self.require_caller
        )

    def _require_time(self) -> None:
        if self.deadline.left_s() < 0:
            raise self.deadline.passed()

    async def run(self, queue: Queue, *inputs: NDArray[Any]) -> Done:
        """The outputs of one of the model's graphs for these rows, as soon as they have been in a batch.

        Raises:  CallerGone if the caller left first, DeadlinePassed if its time was over first
        """
        self._require_time()
        reply = queue.submit(*inputs)
        return await self.deployment.patience.attended(reply, self.request.receive, deadline=self.deadline)


async def read(request: Request, verb: Verb[O]) -> Call[O]:
    """A request to a verb.

    Raises:  whatever Problem there is with it
    """
    began = perf_counter()
    deployment: Deployment = request.app.state.deployment
    settings = deployment.settings
    headers = _headers(request)
    deadline = _deadline(headers, began, settings)
    body = bodies.EMPTY
    if request.method == "POST":
        deployment.lane.require_room(1)  # or else nothing is gained from reading on
        content = await bodies.receive(request, headers, settings=settings, deadline=deadline)
        body = await bodies.parse(
            content, headers, takes=verb.takes, max_parts=settings.max_request_rows, deadline=deadline
        )
    options = _options(verb, _query(request) + body.options)
    model = deployment.models.find(options.model)
    record.of(request.scope).model = model.label
    return Call(
        request=request,
        deployment=deployment,
        model=model,
        options=options,
        body=body,
        form=forms.choose(verb.forms, named=options.format, accept=headers.get("accept")),
        began=began,
        deadline=deadline,
    )


def _headers(request: Request) -> dict[str, str]:
    """The headers by their names; the first of those that have the same, and of lists all as one list.

    Source:  RFC 9110, section 5.3
    """
    sent: list[tuple[bytes, bytes]] = request.scope["headers"]
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(sent)}
    if len(headers) < len(sent):
        headers |= {name: ", ".join(request.headers.getlist(name)) for name in _LISTS & headers.keys()}
    return headers


def _deadline(headers: Mapping[str, str], began: float, settings: Settings) -> Deadline:
    """When the request is to be answered: as it asks, within the server's bound, else by the server's own.

    Raises:  Invalid if it asks for no number of milliseconds
    """
    asked = headers.get("x-timeout-ms")
    if asked is None:
        return Deadline(began, timeout_ms=settings.timeout_ms)
    digits = asked.lstrip("0")
    if not (digits.isascii() and digits.isdigit()):
        raise invalid("X-Timeout-Ms", got=shown(asked), expected="a whole number of milliseconds, at least 1")
    return Deadline(began, timeout_ms=min(int(digits[:_TIMEOUT_DIGITS]), settings.max_timeout_ms))


def _query(request: Request) -> tuple[tuple[str, Named[Any]], ...]:
    sent: bytes = request.scope["query_string"]
    if not sent:
        return ()
    _require_few(sent.count(b"&") + 1)  # before it is read
    return tuple((name, Named(f"query.{name}", value)) for name, value in request.query_params.multi_items())


def _require_few(options: int) -> None:
    if options > _MAX_OPTIONS:
        raise invalid("options", got=f"{options} of them", expected=f"at most {_MAX_OPTIONS}")


def _options(verb: Verb[O], sent: Sequence[tuple[str, Named[Any]]]) -> O:
    if not sent:
        return verb.defaults
    _require_few(len(sent))
    places: dict[str, Named[Any]] = {}
    for name, value in sent:
        if name in places:
            raise invalid(value.where, got=f"{name} once more, after {places[name].where}", expected="it once")
        places[name] = value
    try:
        return verb.options.model_validate({name: named.value for name, named in places.items()})
    except ValidationError as error:
        faults = [_fault(places, dict(item), verb) for item in error.errors(include_url=False)]
        raise Invalid(
            "; ".join(f"{fault['where']}: got {fault['got']}, expected {fault['expected']}" for fault in faults),
            faults=faults,
        ) from error


def _fault(places: dict[str, Named[Any]], error: dict[str, Any], verb: Verb[Options]) -> Fault:
    name, *inner = error["loc"] or ("",)
    where = ".".join([places[name].where if name in places else name, *map(str, inner)])[:200]
    if error["type"] == "extra_forbidden":
        members = sorted(verb.takes) if where.startswith("body.") else []
        known = ", ".join([*members, *verb.options.model_fields])
        return {"where": where, "got": name[:200], "expected": f"one of {known}"}
    return {"where": where, "got": shown(error["input"]), "expected": expectation(error["msg"])}


def chosen_seed(seed: int | None) -> int:
    """The seed that was asked for, or a fresh one below 2⁵³, which every JSON reader keeps exact."""
    return secrets.randbelow(2**53) if seed is None else seed
