"""GET /models and /models/{name}: what is loaded, and everything its manifest says; POST /models/{name}/reload."""

import asyncio
from typing import Any

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from service import addresses, cards, trust
from service.access.keys import Key
from service.deployment import Deployment
from service.errors import DeadlinePassed, Invalid, KeysOff, NotFound, NotReady, ReloadRefused, found_at, unfinished
from service.intake import deadline_of
from service.manifest import CARD
from service.models import Model
from service.observation import record
from service.openapi import HELD, TIMEOUT, headers, not_modified, operation_id, problems
from service.schemas import Limits, ModelAnswer, ModelsAnswer, ModelSummary, ReloadAnswer

router = APIRouter(tags=["models"], generate_unique_id_function=operation_id)

# Said here instead of in the signature, where FastAPI would announce a 422 that a name cannot cause.
_NAME = {"parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]}

_CARD_EXTRA = {"parameters": [*_NAME["parameters"], HELD]}
_RELOAD_EXTRA = {"parameters": [*_NAME["parameters"], TIMEOUT]}
_KEPT = {"Cache-Control": "`no-cache`, and `private` where keys are on"}
_CARD_HEADERS = {
    **_KEPT,
    "ETag": "of the page",
    "Content-Security-Policy": "that the page loads and runs nothing",
    "Cross-Origin-Opener-Policy": "`same-origin`",
    "Referrer-Policy": "`no-referrer`",
}
_CARD: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The page",
        "content": {"text/html": {"schema": {"type": "string"}}},
        "headers": headers(_CARD_HEADERS),
    },
    304: not_modified(_CARD_HEADERS),
}
_ANSWER: dict[int | str, dict[str, Any]] = {200: {"description": "What is loaded", "headers": headers(_KEPT)}}


def _kept(request: Request, response: Response) -> None:
    """What is loaded may be another version by the next time."""
    response.headers.update(addresses.asked_for_again(request.app.state.deployment.settings))


@router.head("/models", include_in_schema=False, dependencies=[Depends(_kept)])
@router.get("/models", responses=_ANSWER, dependencies=[Depends(_kept)])
async def list_models(request: Request) -> ModelsAnswer:
    """The loaded models, the default one first."""
    deployment: Deployment = request.app.state.deployment
    return ModelsAnswer(models=[_summary(deployment, model) for model in deployment.models])


@router.head("/models/{name}", include_in_schema=False, dependencies=[Depends(_kept)])
@router.get(
    "/models/{name}", responses=_ANSWER | problems(NotFound), openapi_extra=_NAME, dependencies=[Depends(_kept)]
)
async def show_model(request: Request) -> ModelAnswer:
    """One model: provider and precision in use, limits, and its manifest."""
    deployment: Deployment = request.app.state.deployment
    model = deployment.models.find(request.path_params["name"], where="path.name")
    return ModelAnswer(
        **_summary(deployment, model).model_dump(),
        trust=trust.described(model.manifest),
        card=None if model.card is None else f"/models/{model.manifest.name}/card",
        limits=Limits.model_validate(deployment.settings, from_attributes=True),
        manifest=model.manifest,
    )


@router.head("/models/{name}/card", include_in_schema=False)
@router.get(
    "/models/{name}/card", response_class=Response, responses=_CARD | problems(NotFound), openapi_extra=_CARD_EXTRA
)
async def show_card(request: Request) -> Response:
    """The model's card and its pictures, as one page for people."""
    deployment: Deployment = request.app.state.deployment
    model = deployment.models.find(request.path_params["name"], where="path.name")
    if model.card is None:
        raise found_at("card", NotFound, got=f"none in {model.label}", expected=f"a bundle with {CARD}")
    headers = cards.HEADERS | {"etag": model.card.etag} | addresses.asked_for_again(deployment.settings)
    if addresses.is_held(request.headers.getlist("if-none-match"), model.card.etag):
        return Response(status_code=304, headers=headers)
    return Response(model.card.content, media_type="text/html", headers=headers)


@router.post(
    "/models/{name}/reload",
    responses=problems(NotFound, ReloadRefused, Invalid, NotReady, DeadlinePassed),
    openapi_extra=_RELOAD_EXTRA,
)
async def reload_model(request: Request) -> ReloadAnswer:
    """Serve this model in the version that lies in its place by now, if it is proven; in all workers or in none. A
    reload that has been asked for is done, also if its deadline passes before it is answered.
    """
    state = request.app.state
    settings = state.deployment.settings
    if not settings.is_keyed:
        raise KeysOff("reload: got a service without keys, expected one with them and an admin's, or SIGHUP")
    deadline = deadline_of(request.headers, record.of(request.scope).began, settings)
    before: Model = state.deployment.models.find(request.path_params["name"], where="path.name")
    name = before.manifest.name
    key: Key = request.scope["state"]["key"]
    reloading = asyncio.create_task(state.reload(name, f"key {key.name}"))
    reloading.add_done_callback(_hear_out)
    try:
        await asyncio.wait({reloading}, timeout=deadline.left_s())
    except asyncio.CancelledError:
        if not state.draining:
            raise
        raise unfinished() from None
    if not reloading.done():
        raise deadline.passed()
    reloading.result()
    now: Model = state.deployment.models.find(name)
    return ReloadAnswer(model=name, digest=now.manifest.digest, digest_before=before.manifest.digest)


def _hear_out(reloading: "asyncio.Task[None]") -> None:
    """Take what came of a reload, whose refusal the log has told: nobody may wait for it any more."""
    if not reloading.cancelled():
        reloading.exception()


def _summary(deployment: Deployment, model: Model) -> ModelSummary:
    return ModelSummary(
        name=model.manifest.name,
        digest=model.manifest.digest,
        default=model is deployment.models.default,
        provider=model.engine.provider,
        precision=model.engine.precision,
        image=model.manifest.image,
        latent_shape=list(model.manifest.latent_shape),
    )
