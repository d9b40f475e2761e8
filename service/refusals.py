"""A problem becomes the response that tells it."""

from urllib.parse import quote

import orjson
from starlette.responses import Response
from starlette.types import Scope

from service.errors import Problem
from service.observation import record

# What a path may hold as it is: RFC 3986, section 3.3.
_IN_PATHS = "/:@!$&'()*+,;="


def response(problem: Problem, scope: Scope) -> Response:
    """The problem document of the request that this scope belongs to, whose record learns of it.

    Source:  RFC 9457
    """
    record.of(scope).problem = problem.kind
    document = Response(
        orjson.dumps(problem.members(quote(scope["path"], safe=_IN_PATHS))),
        status_code=problem.status,
        media_type="application/problem+json",
        headers={"cache-control": "no-store"},
    )
    document.headers.update(problem.headers)
    return document
