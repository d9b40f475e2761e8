"""What becomes known of a request while it is answered: metrics, the log and traces are made of it."""

from typing import cast

from starlette.types import Scope

from service.observation.timing import Timing


class Record:
    """One request; each stage notes what it finds, and nothing is read before the answer leaves.

    Units:  began seconds, as perf_counter gives it
    """

    __slots__ = ("began", "model", "problem", "request_id", "timing", "trace_id")

    def __init__(self, request_id: str, *, began: float) -> None:
        self.request_id = request_id
        self.began = began
        self.model: str | None = None
        self.problem: str | None = None
        self.timing: Timing | None = None
        self.trace_id: str | None = None


def of(scope: Scope) -> Record:
    """The record of the request that this scope belongs to."""
    return cast("Record", scope["state"]["record"])
