"""A problem becomes the response that tells it."""

import orjson
from starlette.responses import Response
from starlette.types import Scope

from service.errors import Problem
from service.observation import record


def response(problem: Problem, scope: Scope) -> Response:
    """The problem document of the request that this scope belongs to, whose record learns of it.

    Source:  RFC 9457
    """
    record.of(scope).problem = problem.kind
    document = Response(
        orjson.dumps(problem.members(scope["path"])),
        status_code=problem.status,
        media_type="application/problem+json",
        headers={"cache-control": "no-store"},
    )
    document.headers.update(problem.headers)
    return document
