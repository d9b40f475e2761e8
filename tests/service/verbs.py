"""Every verb by its path, as the routes know them."""

from service.intake import Verb
from service.routes.latents import ENCODE, SCORE
from service.routes.paths import INTERPOLATE, TRAVERSE
from service.routes.pictures import DECODE, RECONSTRUCT, SAMPLE
from service.schemas import Options

VERBS: dict[str, Verb[Options]] = {
    "/encode": ENCODE,
    "/score": SCORE,
    "/sample": SAMPLE,
    "/decode": DECODE,
    "/reconstruct": RECONSTRUCT,
    "/interpolate": INTERPOLATE,
    "/traverse": TRAVERSE,
}
GETS = ("/sample", "/interpolate", "/traverse")
