"""A request, read and checked before any job exists: its model, its options, its payload, the form of its answer."""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from time import perf_counter
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.requests import Request
from starlette.types import Receive

from service import bodies, forms, images
from service.batcher import Done
from service.bodies import Body, Named
from service.budget import spend
from service.errors import Fault, Invalid, invalid, too_large
from service.models import Deployment, Model
from service.schemas import Options

O = TypeVar("O", bound=Options, covariant=True)  # noqa: E741

# A caller whose answer takes longer than this is listened to, so that its rows are dropped when it leaves.
PATIENCE_S = 0.05


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
    where = ".".join([places[name].where if name in places else name, *map(str, inner)])
    if error["type"] == "extra_forbidden":
        return {"where": where, "got": name, "expected": f"one of {', '.join(model.model_fields)}"}
    expected = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return {"where": where, "got": str(error["input"])[:200], "expected": expected[0].lower() + expected[1:]}


async def picture_rows(call: Call[Options], pictures: Sequence[Named]) -> NDArray[np.uint8]:
    """Encoded pictures as rows that the model takes.

    Shapes:  -> (n, h, w, c)
    """
    limit = call.deployment.settings.max_picture_pixels
    opened = [images.open_picture(picture.value, where=picture.where, max_pixels=limit) for picture in pictures]
    return await spend(
        images.decoding_cost_us(opened),
        images.to_rows,
        opened,
        shape=call.model.manifest.image.shape,
        where=[picture.where for picture in pictures],
    )


async def image_rows(call: Call[Options]) -> NDArray[np.uint8] | None:
    """The request's images as rows that the model takes; None where it carries none.

    Shapes:  -> (n, h, w, c)
    """
    if call.body.pictures:
        call.check_rows(len(call.body.pictures))
        return await picture_rows(call, call.body.pictures)
    tensor = (call.body.members or {}).get("images")
    return None if tensor is None else image_tensor(call, tensor)


def image_tensor(call: Call[Options], tensor: Any) -> NDArray[np.uint8]:
    """A tensor of images, which must have the model's exact shape.

    Shapes:  -> (n, h, w, c)
    """
    shape = call.model.manifest.image.shape
    if not isinstance(tensor, np.ndarray):
        raise invalid("body.images", got=type(tensor).__name__, expected="a list of base64 pictures")
    if tensor.dtype != np.uint8 or tensor.shape[1:] != shape or len(tensor) == 0:
        raise invalid("tensor.images", got=f"{tensor.dtype} {tensor.shape}", expected=f"uint8 {_shape(shape)}, n ≥ 1")
    call.check_rows(len(tensor))
    return tensor


async def latent_rows(call: Call[Options]) -> NDArray[np.float32] | None:
    """The request's latents; a single one counts as one row; None where it carries none.

    Shapes:  -> (n, *latent_shape)
    """
    value = (call.body.members or {}).get("z")
    if value is None:
        return None
    shape = call.model.manifest.latent_shape
    numbers = len(value) * prod(shape) if isinstance(value, list) else 0
    return await spend(0.1 * numbers, as_latents, value, shape, where="z")


def as_latents(value: Any, latent_shape: tuple[int, ...], *, where: str) -> NDArray[np.float32]:
    """Nested numbers or a float tensor as finite latents.

    Shapes:  -> (n, *latent_shape)
    Raises:  Invalid that names the first row that is wrong
    """
    if isinstance(value, np.ndarray):
        numbers = value
        known = numbers.dtype in (np.float32, np.float16)
    else:
        numbers = _numbers(value, where)
        known = numbers.dtype.kind in "iuf"
    rows = numbers[None] if numbers.shape == latent_shape else numbers
    if not known or rows.shape[1:] != latent_shape or len(rows) == 0:
        raise invalid(
            where,
            got=f"{numbers.dtype} {numbers.shape}",
            expected=f"float32 {_shape(latent_shape)}, n ≥ 1, or one latent",
        )
    with np.errstate(over="ignore"):
        latents = np.ascontiguousarray(rows, np.float32)
    finite = np.isfinite(latents).reshape(len(latents), -1).all(axis=1)
    if not finite.all():
        raise invalid(f"{where}[{int(np.argmin(finite))}]", got="NaN or infinity", expected="finite float32")
    return latents


def _numbers(value: Any, where: str) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError:
        raise invalid(where, got="rows of unequal lengths", expected="one shape for all rows") from None


def _shape(row_shape: tuple[int, ...]) -> str:
    return f"(n, {', '.join(map(str, row_shape))})"


def chosen_seed(seed: int | None) -> int:
    """The seed that was asked for, or a fresh one below 2⁵³, which every JSON reader keeps exact."""
    return secrets.randbelow(2**53) if seed is None else seed


async def _attended(reply: "asyncio.Future[Done]", receive: Receive) -> Done:
    """The reply; when it is slow, listening meanwhile for the caller to leave."""
    await asyncio.wait((reply,), timeout=PATIENCE_S)
    if reply.done():
        return reply.result()
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((reply, gone), return_when=asyncio.FIRST_COMPLETED)
        if not reply.done():
            raise CallerGone
        return reply.result()
    finally:
        gone.cancel()
        reply.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
