"""A problem becomes the response that tells it."""

import orjson
from starlette.responses import Response

from service.errors import Problem


def response(problem: Problem, *, path: str) -> Response:
    """The problem document.

    Source:  RFC 9457
    """
    document = Response(
        orjson.dumps(problem.members(path)),
        status_code=problem.status,
        media_type="application/problem+json",
        headers={"cache-control": "no-store"},
    )
    document.headers.update(problem.headers)
    return document
