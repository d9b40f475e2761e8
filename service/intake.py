"""A request, read and checked before any job exists: its model, its options, its payload, the form of its answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import Any, Generic

from pydantic import ValidationError
from starlette.requests import Request

from service import bodies, forms
from service.bodies import Placed
from service.call import Call, O
from service.deadline import Deadline
from service.deployment import Deployment
from service.errors import Fault, Invalid, invalid
from service.observation import record
from service.schemas import Options
from service.settings import Settings
from service.wording import expectation, shown, shown_as_json

_TIMEOUT_DIGITS = 12  # of X-Timeout-Ms, of which more are no less than any server's bound

# Headers that may stand on several lines, and that something depends on.
_LISTS = frozenset({"accept", "content-encoding"})


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


async def read(request: Request, verb: Verb[O]) -> Call[O]:
    """A request to a verb.

    Raises:  whatever Problem there is with it
    """
    began = perf_counter()
    deployment: Deployment = request.app.state.deployment
    settings = deployment.settings
    headers = _headers(request)
    deadline = deadline_of(headers, began, settings)
    body = bodies.EMPTY
    if request.method == "POST":
        deployment.lane.require_room(1)  # or else nothing is gained from reading on
        content = await bodies.receive(
            request, headers, settings=settings, deadline=deadline, body_room=deployment.body_room
        )
        body = await bodies.parse(
            content, headers, takes=verb.takes, max_parts=settings.max_request_rows, deadline=deadline
        )
    options = _options(verb, _query(request) + body.options)
    model = deployment.models.find(options.model, where=body.place_of("model"))
    record.of(request.scope).model = model.label
    return Call(
        request=request,
        deployment=deployment,
        model=model,
        options=options,
        body=body,
        form=_form(verb, options, body, accept=headers.get("accept")),
        began=began,
        deadline=deadline,
    )


def _form(verb: Verb[O], options: Options, body: bodies.Body, *, accept: str | None) -> forms.Form:
    if options.format is None:
        return forms.accepted(verb.forms, accept)
    return forms.named(verb.forms, options.format, where=body.place_of("format"))


def _headers(request: Request) -> dict[str, str]:
    """The headers by their names; the first of those that have the same, and of lists all as one list.

    Source:  RFC 9110, section 5.3
    """
    sent: list[tuple[bytes, bytes]] = request.scope["headers"]
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(sent)}
    if len(headers) < len(sent):
        headers |= {name: ", ".join(request.headers.getlist(name)) for name in _LISTS & headers.keys()}
    return headers


def deadline_of(headers: Mapping[str, str], began: float, settings: Settings) -> Deadline:
    """When the request is to be answered: as it asks, within the server's bound, else by the server's own.

    Raises:  Invalid if it asks for no number of milliseconds
    """
    asked = headers.get("x-timeout-ms")
    if asked is None:
        return Deadline(began, timeout_ms=settings.timeout_ms)
    digits = asked.strip(" \t").lstrip("0")
    if not (digits.isascii() and digits.isdigit()):
        raise invalid("X-Timeout-Ms", got=shown(asked), expected="a whole number of milliseconds, at least 1")
    return Deadline(began, timeout_ms=min(int(digits[:_TIMEOUT_DIGITS]), settings.max_timeout_ms))


def _query(request: Request) -> tuple[tuple[str, Placed[Any]], ...]:
    sent: bytes = request.scope["query_string"]
    if not sent:
        return ()
    bodies.require_few(sent.count(b"&") + 1)  # before it is read
    return tuple((name, Placed(f"query.{name}", value)) for name, value in request.query_params.multi_items())


def _options(verb: Verb[O], sent: Sequence[tuple[str, Placed[Any]]]) -> O:
    if not sent:
        return verb.defaults
    bodies.require_few(len(sent))
    places: dict[str, Placed[Any]] = {}
    for name, value in sent:
        if name in places:
            raise invalid(value.where, got=f"{name} once more, after {places[name].where}", expected="it once")
        places[name] = value
    try:
        return verb.options.model_validate({name: placed.value for name, placed in places.items()}, context=places)
    except ValidationError as error:
        faults = [_fault(places, dict(item), verb) for item in error.errors(include_url=False)]
        raise Invalid(
            "; ".join(f"{fault['where']}: got {fault['got']}, expected {fault['expected']}" for fault in faults),
            faults=faults,
        ) from error


def _fault(places: dict[str, Placed[Any]], error: dict[str, Any], verb: Verb[Options]) -> Fault:
    name, *inner = error["loc"] or ("",)
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in inner]
    where = "".join([places[name].where if name in places else name, *steps])[:200]
    if error["type"] == "extra_forbidden":
        members = sorted(verb.takes) if where.startswith("body.") else []
        known = ", ".join([*members, *verb.options.model_fields])
        return {"where": where, "got": name[:200], "expected": f"one of {known}"}
    found = error["input"] if inner else places[name].value  # as it was sent, not as it was read
    got = (shown_as_json if where.startswith("body.") else shown)(found)
    return {"where": where, "got": got, "expected": expectation(error["msg"], kind=error["type"])}
