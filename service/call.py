"""A request that is being answered: what it asks, and how it comes to room, threads and the engine."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

from numpy.typing import NDArray
from starlette.requests import Request

from service import sizes
from service.access.keys import Key
from service.batcher import Done, Queue
from service.bodies import Body
from service.budget import LOOP_BUDGET_US, spend, spend_with_room
from service.callers import CallerGone
from service.deadline import Deadline
from service.deployment import Deployment
from service.errors import invalid, too_large
from service.forms import Form
from service.models import Model
from service.schemas import Options, WarningAnswer

O = TypeVar("O", bound=Options, covariant=True)  # noqa: E741
P = ParamSpec("P")
T = TypeVar("T")

# Larger answers are written as there is room: 12 bytes a pixel, as some formats take, are 48 MB here.
_LARGE_ANSWER_PIXELS = 4_000_000


class Call(NamedTuple, Generic[O]):
    """One request, read. Whoever answers it needs nothing else."""

    request: Request
    deployment: Deployment
    model: Model
    options: O
    body: Body
    form: Form
    began: float
    deadline: Deadline
    warnings: tuple[WarningAnswer, ...] = ()
    is_of_digest: bool = True
    """Whether the digest and the address determine the answer, and nothing else of the manifest does."""

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
                raise invalid(self.body.place_of(name), got=asked, expected=sizes.length_in_words(axis))
        return height or default_height, width or default_width, channels

    def check_rows(self, engine_rows: int) -> None:
        """Refuse a request whose engine rows are over the limit."""
        limit = self.deployment.settings.max_request_rows
        if engine_rows > limit:
            remark = "rows are counted in pictures of the default size" if self.model.manifest.image.is_open else ""
            raise too_large("rows", got=engine_rows, limit=limit, unit="rows", remark=remark)

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

    async def spend_with_room(self, weight: int, work: Callable[[], T]) -> T:
        """The result of `work` in a thread, once there is room for so many pixels as `budget.spend_with_room` says.

        Raises:  DeadlinePassed, CallerGone if nobody waits for it by then
        """
        return await spend_with_room(
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
        return await spend_with_room(
            room, pixels, self.deadline, work, cost_us=cost_us, require_caller=self.require_caller
        )

    async def run(self, queue: Queue, *inputs: NDArray[Any]) -> Done:
        """The outputs of one of the model's graphs for these rows, as soon as they have been in a batch.

        Raises:  CallerGone if the caller left first, DeadlinePassed if its time was over first
        """
        self._require_time()
        reply = queue.submit(*inputs)
        return await self.deployment.patience.attended(reply, self.request.receive, deadline=self.deadline)

    def _require_time(self) -> None:
        if self.deadline.left_s() < 0:
            raise self.deadline.passed()
