"""OpenAPI for verbs, from the same classes that check their requests."""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.access import gate, keys
from service.bodies import readable_types
from service.errors import (
    PROBLEMS,
    BadBody,
    DeadlinePassed,
    HeadTooLarge,
    Internal,
    Invalid,
    KeyLacksScope,
    KeysOff,
    ModelCannot,
    NoKey,
    NotAcceptable,
    NotFound,
    NotReady,
    OutOfMemory,
    Problem,
    QueueFull,
    RateUsedUp,
    SlowBody,
    TooLarge,
    TooManyConnections,
    UnsupportedType,
)
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
_OF_PROBLEMS: dict[type[Problem], dict[str, str]] = {
    NoKey: _CHALLENGE,
    KeyLacksScope: _CHALLENGE,
    QueueFull: _AGAIN,
    RateUsedUp: _AGAIN,
    TooManyConnections: _AGAIN,
}

# What no application sees, so that it has no name.
_UNNAMED = (HeadTooLarge, TooManyConnections)

# What a request may come to: any one, wherever it leads, one to a verb, and one with a body.
_ANYWHERE = (*_UNNAMED, Internal)
_OF_VERBS = (NotFound, NotAcceptable, TooLarge, Invalid, QueueFull, NotReady, OutOfMemory, DeadlinePassed)
_OF_BODIES = (BadBody, SlowBody, UnsupportedType)

Parts = dict[str, Any]

TIMEOUT = {
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


def operation_id(route: APIRoute) -> str:
    """What a generated client calls a route, if the route does not say it: as its function is called here."""
    return route.name


def describe(verb: Verb[Options], *, answer: type[BaseModel], body: type[BaseModel] | None = None) -> Parts:
    """What FastAPI is told of a verb's route; without a body, of its GET."""
    options = _options(verb)
    sent = _identity(verb) | _TIMING | _chosen(verb)
    kinds: tuple[type[Problem], ...] = (*_OF_VERBS, *_lacking(verb))
    answers: dict[int | str, Any] = {}
    if body is None:
        extra: Parts = {"parameters": [*map(_parameter, options, options.values()), TIMEOUT, HELD]}
        sent |= _CACHING
        answers[304] = not_modified(_identity(verb) | _CACHING | (_DIMS if "dims" in options else {}))
    else:
        # They stand in the query and in the body, and a generated client sends what it has a default for in both.
        options = {name: _with_default_in_words(option) for name, option in options.items()}
        extra = {"parameters": [*map(_parameter, options, options.values()), TIMEOUT]}
        extra["requestBody"] = _body(verb, body, options)
        kinds = (*kinds, *_OF_BODIES)
    answers[200] = {
        "description": "The answer, in the form asked for",
        "content": _answers(verb.forms, answer),
        "headers": headers(sent),
    }
    return {
        "responses": answers | problems(*kinds),
        "openapi_extra": extra,
        "response_model": None,
        # A plain Response has no media type of its own, which would be listed before the verb's default.
        "response_class": Response,
        "generate_unique_id_function": operation_id,
    }


def _lacking(verb: Verb[Options]) -> tuple[type[Problem], ...]:
    """What a model may lack for a verb: what a seed is for, and with it a scorer."""
    return (ModelCannot,) if {"seed", "seeds"} & verb.options.model_fields.keys() else ()


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


def problems(*kinds: type[Problem]) -> dict[int | str, Parts]:
    """The problem documents that a route can answer with, by status; several of one status are one answer."""
    answers: dict[int | str, Parts] = {}
    for kind in PROBLEMS:
        if kind in kinds:
            named = {} if kind in _UNNAMED else _REQUEST_ID
            answer = {
                "description": kind.title,
                "content": {"application/problem+json": {"schema": {"$ref": _REFERENCE.format(model="ProblemAnswer")}}},
                "headers": headers(_NO_STORE | _OF_PROBLEMS.get(kind, {}) | named),
            }
            _add(answers, str(kind.status), answer)
    return answers


def _add(answers: dict[Any, Parts], status: str, answer: Parts) -> None:
    """One answer more, which may be another of a status that is there."""
    known = answers.get(status)
    if known is not None:
        description = f"{known['description']}; or: {answer['description']}"
        answer = answer | {"description": description, "headers": known["headers"] | answer["headers"]}
    answers[status] = answer


def install(app: FastAPI, *, keyed: bool, metrics_open: bool) -> None:
    """Give an application its OpenAPI document, made and written once, with the schemas that `describe` refers to and
    what is true of every operation; where keys are on, also with what takes one, which the metrics may not.
    """

    def document() -> Parts:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, schemas = models_json_schema([(model, "validation") for model in _COMPONENTS], ref_template=_REFERENCE)
            made.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
            _fit_bodies(made)
            if keyed:
                _lock(made, metrics_open=metrics_open)
            else:
                _refuse_admins(made)
            _complete(made)
            app.openapi_schema = made
        return app.openapi_schema

    @cache
    def written() -> bytes:
        return orjson.dumps(document())  # at each request, as FastAPI does it, that holds the event loop

    async def endpoint(_request: Request) -> Response:
        return Response(written(), media_type="application/json")

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to extend OpenAPI
    app.router.routes[:0] = [Route("/openapi.json", endpoint, include_in_schema=False)]  # ahead of FastAPI's own


def _operations(document: Parts) -> Iterator[tuple[str, str, Parts]]:
    """Path, method and what is said of it."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method.upper(), operation


def _fit_bodies(document: Parts) -> None:
    """Say of the options in a verb's JSON what its parameters say: its own forms, and defaults in words alone."""
    for _, _, operation in _operations(document):
        if "requestBody" in operation:
            reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            schema = document["components"]["schemas"][reference.rpartition("/")[2]]
            schema["properties"] = {
                name: _with_default_in_words(option) for name, option in schema["properties"].items()
            }
            (forms,) = [each["schema"] for each in operation["parameters"] if each["name"] == "format"]
            schema["properties"]["format"] |= {"anyOf": [forms, {"type": "null"}]}


def _lock(document: Parts, *, metrics_open: bool) -> None:
    """Say of every operation that takes a key that it does, and how it refuses those that may not."""
    document["components"]["securitySchemes"] = {_KEY: {"type": "http", "scheme": "bearer", "description": _SHOWN}}
    for path, method, operation in _operations(document):
        if not gate.is_open(path, metrics_open=metrics_open):
            operation["security"] = [{_KEY: [gate.needed(method, path)]}]
            _refuse(operation, NoKey, KeyLacksScope, RateUsedUp)


def _refuse_admins(document: Parts) -> None:
    """Say of every operation that is an admin's that nobody is one."""
    for path, method, operation in _operations(document):
        if gate.needed(method, path) is keys.Scope.ADMIN:
            _refuse(operation, KeysOff)


def _refuse(operation: Parts, *kinds: type[Problem]) -> None:
    for status, answer in problems(*kinds).items():
        _add(operation["responses"], str(status), answer)


def _complete(document: Parts) -> None:
    """Say of every operation what any request may send and come to."""
    for _, _, operation in _operations(document):
        operation["parameters"] = [*operation.get("parameters", ()), _NAMED]
        for status, answer in operation["responses"].items():
            if status < "400":
                answer["headers"] = answer.get("headers", {}) | headers(_REQUEST_ID)
        _refuse(operation, *_ANYWHERE)
        operation["responses"] = dict(sorted(operation["responses"].items()))


def _options(verb: Verb[Options]) -> dict[str, Parts]:
    """Each option of a verb as it is when present, in a query or a form; `format` lists the forms of this verb."""
    properties = verb.options.model_json_schema(ref_template=_REFERENCE)["properties"]
    properties["format"] |= {"anyOf": [{"type": "string", "enum": [form.label for form in verb.forms]}]}
    return {name: _as_text(_without_null(schema)) for name, schema in properties.items()}


def _without_null(schema: Parts) -> Parts:
    """An option that is absent by default, as what it is when present."""
    kept = {name: value for name, value in schema.items() if name != "title"}
    if "anyOf" in kept:
        (present,) = [choice for choice in kept.pop("anyOf") if choice != {"type": "null"}]
        kept = {name: value for name, value in kept.items() if name != "default"} | present
    return kept


def _as_text(schema: Parts) -> Parts:
    """A list as the text with commas that it is there: not every generator knows how else to write one."""
    if schema["type"] != "array":
        return schema
    several = "+" if schema["minItems"] > 1 else "*"
    (example,) = schema["examples"]
    return {
        "description": schema["description"],
        "type": "string",
        "pattern": f"^[0-9]+(,[0-9]+){several}$",
        "example": ",".join(map(str, example)),
    }


def _with_default_in_words(schema: Parts) -> Parts:
    """An option that two places may have, so that neither may be filled in unasked: no default and no example."""
    kept = {name: value for name, value in schema.items() if name not in {"default", "example", "examples"}}
    if schema.get("default") is not None:
        default = schema["default"]
        text = default if isinstance(default, str) else json.dumps(default)
        kept["description"] = f"{schema['description']} Default: `{text}`."
    return kept


def _parameter(name: str, option: Parts) -> Parts:
    """An option in a query."""
    told = {key: value for key, value in option.items() if key in {"description", "example"}}
    schema = {key: value for key, value in option.items() if key not in told}
    return {"name": name, "in": "query", "required": False, **told, "schema": schema}


def _body(verb: Verb[Options], body: type[BaseModel], options: Mapping[str, Parts]) -> Parts:
    """The bodies that a verb reads, by their types."""
    is_required = bool(verb.takes) and not issubclass(verb.options, SeededOptions)
    images = {"type": "array", "items": _BINARY}
    form = {"type": "object", "properties": {"images": images, **options}}
    schemas = {
        "application/json": {"$ref": _REFERENCE.format(model=body.__name__)},
        "multipart/form-data": form | ({"required": ["images"]} if is_required else {}),
    }
    content = {each: {"schema": schemas.get(each, _BINARY)} for each in readable_types(verb.takes)}
    return {"required": is_required, "content": content}


def _answers(forms: tuple[Form, ...], answer: type[BaseModel]) -> dict[str, Any]:
    document = {"$ref": _REFERENCE.format(model=answer.__name__)}
    return {form.media_type: {"schema": document if form is Form.JSON else _BINARY} for form in forms}
