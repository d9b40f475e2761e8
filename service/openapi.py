"""OpenAPI for verbs, from the same classes that check their requests."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from service.access import gate
from service.bodies import readable_types
from service.errors import PROBLEMS
from service.forms import Form
from service.intake import Verb
from service.schemas import (
    DecodeBody,
    EncodeAnswer,
    EncodeBody,
    InterpolateBody,
    Options,
    PicturesAnswer,
    ProblemAnswer,
    ReconstructBody,
    SampleOptions,
    ScoreAnswer,
    ScoreBody,
    SeededOptions,
    TraverseBody,
)

_REFERENCE = "#/components/schemas/{model}"
_COMPONENTS: tuple[type[BaseModel], ...] = (
    EncodeBody,
    SampleOptions,
    DecodeBody,
    ReconstructBody,
    InterpolateBody,
    TraverseBody,
    ScoreBody,
    EncodeAnswer,
    ScoreAnswer,
    PicturesAnswer,
    ProblemAnswer,
)
_KEY, _SHOWN = "key", "A key of the file that this service was started with, as `Authorization: Bearer vae_…`"
_BINARY = {"type": "string", "format": "binary"}
_IDENTITY = {
    "X-Model": "name@digest of the bundle that answered",
    "Vary": "`Accept`, where no `format` was named",
}
_TIMING = {"Server-Timing": "milliseconds of decode, queue, run and encode, and the batch's size"}
_CACHING = {
    "Cache-Control": "`no-cache` with a seed, `immutable` with a seed and `model=name@digest`, else `no-store`",
    "ETag": "with a seed: of this URL and the model that answered",
}
_SEED = {"X-Seed": "the seed that was chosen, where one was needed and none was sent"}
_WARNINGS = {"X-Warnings": "where the model is not to be trusted for this: type and reason, a list of RFC 9651"}
_DIMS = {"X-Dims": "the dimensions that were chosen, line by line, where none were sent"}
_REQUEST_ID = {"X-Request-ID": "yours if you sent one"}
_AGAIN = {"Retry-After": "seconds after which to come back, where that can be said"}
_CHALLENGE = {"WWW-Authenticate": "what the key lacks: RFC 6750"}
_NO_STORE = {"Cache-Control": "`no-store`"}
_OF_PROBLEMS = {401: _CHALLENGE, 403: _CHALLENGE, 429: _AGAIN, 503: _AGAIN}

# What any request may come to, wherever it leads.
_ANYWHERE = (431, 500, 503)

_TIMEOUT = {
    "name": "X-Timeout-Ms",
    "in": "header",
    "required": False,
    "description": "Milliseconds until 504, if the answer is not made by then; else the server's own.",
    "schema": {"type": "integer", "format": "int64", "minimum": 1},
}
HELD = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "ETags of the answers that a cache holds, one of which may be told by 304.",
    "schema": {"type": "string"},
}
_NAMED = {
    "name": "X-Request-ID",
    "in": "header",
    "required": False,
    "description": "Name of this request, in its answer and in logs; else one is made.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
}


class VerbRoute(APIRoute):
    """A verb in FastAPI's table and document; the requests themselves come in by `doors`."""


def describe(verb: Verb[Options], *, answer: type[BaseModel], body: type[BaseModel] | None = None) -> dict[str, Any]:
    """What FastAPI is told of a verb's route; without a body, of its GET."""
    extra: dict[str, Any] = {"parameters": [*_parameters(verb), _TIMEOUT, *([HELD] if body is None else [])]}
    if body is not None:
        required = bool(verb.takes) and not issubclass(verb.options, SeededOptions)
        extra["requestBody"] = {"required": required, "content": _contents(verb, body, is_required=required)}
    common = (404, 406, 409, 413, 422, 429, 504)
    statuses = common if body is None else (400, 408, 415, *common)
    answers: dict[int | str, Any] = {
        200: {
            "description": "The answer, in the form asked for",
            "content": _answers(verb.forms, answer),
            "headers": headers(_identity(verb) | _TIMING | _chosen(verb) | (_CACHING if body is None else {})),
        },
        **problems(*statuses),
    }
    if body is None:
        answers[304] = not_modified(_identity(verb) | _CACHING)
    # A plain Response has no media type of its own, which would be listed before the verb's default.
    return {"responses": answers, "openapi_extra": extra, "response_model": None, "response_class": Response}


def _identity(verb: Verb[Options]) -> dict[str, str]:
    return _IDENTITY | (_WARNINGS if {"prior", "seeds"} & verb.options.model_fields.keys() else {})


def _chosen(verb: Verb[Options]) -> dict[str, str]:
    options = verb.options.model_fields
    return _DIMS if "dims" in options else _SEED if "seed" in options else {}


def headers(texts: Mapping[str, str]) -> dict[str, Any]:
    """Headers of an answer, from what each of them says."""
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in texts.items()}


def not_modified(texts: Mapping[str, str]) -> dict[str, Any]:
    """The 304 of an answer that has these headers."""
    return {"description": "The cache that asked holds this answer", "headers": headers(texts)}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem documents that a route can answer with."""
    document = {"schema": {"$ref": _REFERENCE.format(model="ProblemAnswer")}}
    titles: dict[int | str, list[str]] = {}
    for kind in PROBLEMS:
        if kind.status in statuses:
            titles.setdefault(kind.status, []).append(kind.title)
    return {
        status: {
            "description": "; or: ".join(several),
            "content": {"application/problem+json": document},
            "headers": headers(_NO_STORE | _OF_PROBLEMS.get(int(status), {})),
        }
        for status, several in titles.items()
    }


def install(app: FastAPI, *, keyed: bool, metrics_open: bool) -> None:
    """Give an application its OpenAPI document, made once, with the schemas that `describe` refers to and what is true
    of every operation; where keys are on, also with what takes one, which the metrics may not.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, schemas = models_json_schema([(model, "validation") for model in _COMPONENTS], ref_template=_REFERENCE)
            made.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
            if keyed:
                _lock(made, metrics_open=metrics_open)
            _complete(made)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to extend OpenAPI


def _lock(document: dict[str, Any], *, metrics_open: bool) -> None:
    """Say of every operation that takes a key that it does, and how it refuses those that may not."""
    document["components"]["securitySchemes"] = {_KEY: {"type": "http", "scheme": "bearer", "description": _SHOWN}}
    refused = {str(status): answer for status, answer in problems(401, 403, 429).items()}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if not gate.is_open(path, metrics_open=metrics_open):
                operation["security"] = [{_KEY: [gate.needed(method.upper(), path)]}]
                operation["responses"] |= refused


def _complete(document: dict[str, Any]) -> None:
    """Say of every operation what any request may send and come to."""
    anywhere = {str(status): answer for status, answer in problems(*_ANYWHERE).items()}
    for item in document["paths"].values():
        for operation in item.values():
            operation["parameters"] = [*operation.get("parameters", ()), _NAMED]
            operation["responses"] = anywhere | operation["responses"]
            for answer in operation["responses"].values():
                answer["headers"] = answer.get("headers", {}) | headers(_REQUEST_ID)


def _parameters(verb: Verb[Options]) -> list[dict[str, Any]]:
    """Each option of a verb as a query parameter; `format` lists the forms of this verb."""
    properties = verb.options.model_json_schema(ref_template=_REFERENCE)["properties"]
    properties["format"] |= {"anyOf": [{"type": "string", "enum": [form.label for form in verb.forms]}]}
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema.get("description", ""),
            "schema": (present := _without_null(schema)),
        }
        | ({"style": "form", "explode": False} if present.get("type") == "array" else {})
        for name, schema in properties.items()
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """An option that is absent by default, as what it is when present."""
    kept = {name: value for name, value in schema.items() if name not in {"description", "title"}}
    if "anyOf" in kept:
        (present,) = [choice for choice in kept.pop("anyOf") if choice != {"type": "null"}]
        kept = {name: value for name, value in kept.items() if name != "default"} | present
    return kept


def _contents(verb: Verb[Options], body: type[BaseModel], *, is_required: bool) -> dict[str, Any]:
    contents: dict[str, Any] = {}
    for media_type in readable_types(verb.takes):
        if media_type == "application/json":
            contents[media_type] = {"schema": {"$ref": _REFERENCE.format(model=body.__name__)}}
        elif media_type == "multipart/form-data":
            fields = {option["name"]: option["schema"] for option in _parameters(verb)}
            lists = [name for name, schema in fields.items() if schema.get("type") == "array"]
            parts = {"images": {"type": "array", "items": _BINARY}, **fields}
            contents[media_type] = {
                "schema": {"type": "object", "properties": parts, **({"required": ["images"]} if is_required else {})}
            }
            if lists:  # which would be a part for each item else
                contents[media_type]["encoding"] = {name: {"style": "form", "explode": False} for name in lists}
        else:
            contents[media_type] = {"schema": _BINARY}
    return contents


def _answers(forms: tuple[Form, ...], answer: type[BaseModel]) -> dict[str, Any]:
    document = {"$ref": _REFERENCE.format(model=answer.__name__)}
    return {form.media_type: {"schema": document if form is Form.JSON else _BINARY} for form in forms}
