"""Everything that can go wrong with a request: one class per case, with its status, its type and a sentence.

`docs/api.md` shows this list to clients; each case travels as RFC 9457 `application/problem+json`.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeVar

from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from service.wording import shown


class Fault(TypedDict):
    """One thing that is wrong with a request: the place, what stood there, what may stand there."""

    where: str
    got: str
    expected: str


class Problem(Exception):
    """A request that is answered with an error. Raised anywhere, written in `refusals`."""

    status: ClassVar[int]
    kind: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, detail: str, *, faults: Sequence[Fault] = (), headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.faults = tuple(faults)
        self.headers = dict(headers or {})

    def members(self, instance: str) -> dict[str, object]:
        """The members of the problem document, `errors` only where there are some."""
        document: dict[str, object] = {
            "type": f"urn:vaeserve:problem:{self.kind}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
        }
        return document | ({"errors": list(self.faults)} if self.faults else {})


class BadBody(Problem):
    """The body is not what its content type says."""

    status = 400
    kind = "bad-body"
    title = "The body is not what its content type says"


class NoKey(Problem):
    """Keys are on, and the request shows none, or none that is known."""

    status = 401
    kind = "no-key"
    title = "No key that is known here"


class KeyLacksScope(Problem):
    """The key is known, but not for this."""

    status = 403
    kind = "key-lacks-scope"
    title = "This key is not for this"


class KeysOff(Problem):
    """Keys are off, so that nobody is an admin; only a signal to the process does this."""

    status = 403
    kind = "keys-off"
    title = "Nobody is an admin here"


class NotFound(Problem):
    """No such path, or no such model."""

    status = 404
    kind = "not-found"
    title = "No such path or model"


class MethodNotAllowed(Problem):
    """The path exists, the method does not."""

    status = 405
    kind = "method-not-allowed"
    title = "This path does not know this method"


class NotAcceptable(Problem):
    """None of the forms that the verb can answer in is accepted."""

    status = 406
    kind = "not-acceptable"
    title = "No such form of answer"


class SlowBody(Problem):
    """The body came more slowly than the service waits; the connection is closed."""

    status = 408
    kind = "slow-body"
    title = "The body came too slowly"


class ModelCannot(Problem):
    """The request is right, but this model lacks what it needs: a prior, a scorer, a posterior."""

    status = 409
    kind = "model-cannot"
    title = "This model cannot do this"


class ReloadRefused(Problem):
    """What lies in the place of the model is not proven, or not the same to all workers; what was loaded serves on."""

    status = 409
    kind = "reload-refused"
    title = "The new version is not served"


class TooLarge(Problem):
    """The body, a picture, the number of rows or the answer is over its limit; the detail names the limit."""

    status = 413
    kind = "too-large"
    title = "Over the limit"


class UnsupportedType(Problem):
    """The verb does not read bodies of this content type, or the body is compressed."""

    status = 415
    kind = "unsupported-type"
    title = "No such form of body"


class Invalid(Problem):
    """Well-formed, but impossible: a wrong shape, NaN, one step, an unknown option."""

    status = 422
    kind = "invalid"
    title = "Well-formed but impossible"


class QueueFull(Problem):
    """More rows wait than the queue may hold, or more of bodies that have come in part; `Retry-After` says when to come
    back.
    """

    status = 429
    kind = "queue-full"
    title = "The queue is full"


class RateUsedUp(Problem):
    """The key has used its engine rows; `Retry-After` says when it has some again."""

    status = 429
    kind = "rate-used-up"
    title = "This key's rate is used up"


class HeadTooLarge(Problem):
    """The request's address and headers are longer than the service reads; the connection is closed."""

    status = 431
    kind = "head-too-large"
    title = "Too much before the body"


class Internal(Problem):
    """Our fault. The request id finds it in the log."""

    status = 500
    kind = "internal"
    title = "The service failed"


class NotReady(Problem):
    """This process was told to end: it serves a little longer, and wants no new callers; whoever is not answered by the
    end of its time gets this too. Or its engine is stuck.
    """

    status = 503
    kind = "not-ready"
    title = "The service is not ready"


class OutOfMemory(Problem):
    """The device has no memory for these rows now; smaller batches follow."""

    status = 503
    kind = "out-of-memory"
    title = "The device is out of memory"


class TooManyConnections(Problem):
    """As many connections are in use as may be; this one is closed. `Retry-After` says when to come back."""

    status = 503
    kind = "too-many-connections"
    title = "Too many connections"


class DeadlinePassed(Problem):
    """The request's time, `X-Timeout-Ms` or the server's own, was over before its answer could be made."""

    status = 504
    kind = "deadline-passed"
    title = "The deadline passed"


PROBLEMS: tuple[type[Problem], ...] = (
    BadBody,
    NoKey,
    KeyLacksScope,
    KeysOff,
    NotFound,
    MethodNotAllowed,
    NotAcceptable,
    SlowBody,
    ModelCannot,
    ReloadRefused,
    TooLarge,
    UnsupportedType,
    Invalid,
    QueueFull,
    RateUsedUp,
    HeadTooLarge,
    Internal,
    NotReady,
    OutOfMemory,
    TooManyConnections,
    DeadlinePassed,
)


def unfinished() -> NotReady:
    """The 503 of a request that a process which was told to end has no time left for."""
    return NotReady("shutdown: this process has no time left to finish the request, another one may take it")


P = TypeVar("P", bound=Problem)


def found_at(where: str, kind: type[P], *, got: object, expected: str) -> P:
    """A problem with one place of a request: its sentence and its fault, made from the same words."""
    where, found = where[:200], shown(got)
    return kind(
        f"{where}: got {found}, expected {expected}",
        faults=[{"where": where, "got": found, "expected": expected}],
    )


def invalid(where: str, *, got: object, expected: str) -> Invalid:
    """A 422 about one place."""
    return found_at(where, Invalid, got=got, expected=expected)


def too_large(what: str, *, got: int, limit: int, unit: str, remark: str = "", where: str | None = None) -> TooLarge:
    """A 413 that names the limit, and what else a caller should know; `where`, if `what` is no place."""
    try:
        grouped, plain = f"{got:,}", f"{got}"
    except ValueError:  # Python writes no number of thousands of digits, which a product of options may be
        grouped = plain = "far too many"
    return TooLarge(
        f"{what}: got {grouped} {unit}, the limit is {limit:,}{remark and f'; {remark}'}",
        faults=[{"where": where or what, "got": f"{plain} {unit}", "expected": f"at most {limit} {unit}"}],
    )
