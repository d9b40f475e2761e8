"""GET /models and /models/{name}: what is loaded, and everything its manifest says."""

from fastapi import APIRouter
from starlette.requests import Request

from service.models import Deployment, Model
from service.openapi import problems
from service.schemas import Limits, ModelAnswer, ModelsAnswer, ModelSummary

router = APIRouter(tags=["models"])

# Said here instead of in the signature, where FastAPI would announce a 422 that a name cannot cause.
_NAME = {"parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]}


@router.head("/models", include_in_schema=False)
@router.get("/models")
async def list_models(request: Request) -> ModelsAnswer:
    """The loaded models, the default one first."""
    deployment: Deployment = request.app.state.deployment
    return ModelsAnswer(models=[_summary(deployment, model) for model in deployment.models])


@router.head("/models/{name}", include_in_schema=False)
@router.get("/models/{name}", responses=problems(404), openapi_extra=_NAME)
async def show_model(request: Request) -> ModelAnswer:
    """One model: provider and precision in use, limits, and its manifest."""
    deployment: Deployment = request.app.state.deployment
    model = deployment.models.find(request.path_params["name"])
    return ModelAnswer(
        **_summary(deployment, model).model_dump(),
        limits=Limits.model_validate(deployment.settings, from_attributes=True),
        manifest=model.manifest.model_dump(mode="json"),
    )


def _summary(deployment: Deployment, model: Model) -> ModelSummary:
    return ModelSummary(
        name=model.manifest.name,
        digest=model.manifest.digest,
        default=model is deployment.models.default,
        provider=model.engine.provider,
        precision=model.engine.precision,
        image=model.manifest.image.model_dump(),
        latent_shape=list(model.manifest.latent_shape),
    )
