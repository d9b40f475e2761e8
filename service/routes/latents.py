"""POST /encode: pictures to the posterior of each."""

from time import perf_counter

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service import answers, intake, payload
from service.budget import spend
from service.errors import invalid
from service.forms import LATENT_FORMS
from service.intake import Verb
from service.latents import normals_cost_us, posterior_sample
from service.openapi import VerbRoute, describe
from service.schemas import EncodeAnswer, EncodeBody, EncodeOptions

router = APIRouter(tags=["latents"], route_class=VerbRoute)

ENCODE = Verb(EncodeOptions, frozenset({"images"}), LATENT_FORMS)


@router.post("/encode", **describe(ENCODE, body=EncodeBody, answer=EncodeAnswer))
async def encode(request: Request) -> Response:
    """Posterior of each image: mu and logvar, one row each, in the order sent."""
    call = await intake.read(request, ENCODE)
    options = call.options
    image = await payload.images_of(call)
    if image is None:
        raise invalid("body", got="no images", expected="at least one picture")
    call.check_rows(len(image) * max(1, options.draws))
    decoded_at = perf_counter()
    with call.deployment.lane.admit(len(image)):
        done = await call.run(call.model.encoder, image)
    if options.draws == 0:
        return await answers.latents(call, done, decoded_at=decoded_at, z=None, seed=None)
    seed = intake.chosen_seed(options.seed)
    mu, logvar = done.outputs
    cost = normals_cost_us(mu.size * options.draws)
    z = await spend(cost, posterior_sample, mu, logvar, seed=seed, draws=options.draws)
    response = await answers.latents(call, done, decoded_at=decoded_at, z=z, seed=seed)
    if options.seed is None:
        response.headers["x-seed"] = str(seed)
    return response
