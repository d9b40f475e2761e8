"""What a client may send as options and JSON, and what JSON it gets back. OpenAPI is made from these classes."""

import re
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SkipValidation, ValidationInfo, field_validator
from typing_extensions import TypeAliasType

from service.errors import PROBLEMS, Fault, too_large
from service.latents import MAX_SEED
from service.manifest import ImageSpec, Manifest

# Named for generated clients, whose integers have 32 bits else.
_INT64: dict[str, Any] = {"format": "int64"}
Seed = Annotated[int, Field(ge=0, le=MAX_SEED, json_schema_extra=_INT64)]
AnsweredSeed = Annotated[int, Field(json_schema_extra=_INT64)]
Dimension = Annotated[int, Field(ge=0)]


# Seeds or dimensions in one list, whatever rows a request may have.
_MOST_LISTED = 65_536

# How numbers and truths are spelled in a query and in a form, where everything is text. Python would take 1_000 too; of
# more digits it takes none.
_WHOLE = re.compile(r"-?[0-9]{1,4300}")
_WHOLES = re.compile(rf"(?:{_WHOLE.pattern},)*")
_NUMBER = re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def _without_point(value: object) -> object:
    """4.0 as 4, which to JSON Schema is the same."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _whole(value: object) -> object:
    if isinstance(value, str):
        return int(value) if _WHOLE.fullmatch(value) else value
    return _without_point(value)


def _number(value: object) -> object:
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _truth(value: object) -> object:
    return _TRUTHS.get(value.lower(), value) if isinstance(value, str) else value


def _listed(value: object) -> object:
    """The numbers of a list, of JSON or with commas, as in `seeds=3,14` and `dims=0,3`, if they are no more than any
    request may cost rows.

    Raises:  TooLarge
    """
    listed = value.split(",", _MOST_LISTED) if isinstance(value, str) else value
    if not isinstance(listed, list):
        return value
    if len(listed) > _MOST_LISTED:
        raise too_large("rows", got=len(listed), limit=_MOST_LISTED, unit="rows")
    if isinstance(value, str):
        n = _number_of_wholes(value)  # the item behind them is refused by its place, and none after it
        return *map(int, listed[:n]), *listed[n : n + 1]
    return tuple(map(_whole, listed))


def _number_of_wholes(text: str) -> int:
    """The items of a list with commas that are spelled as whole numbers, up to the first that is not."""
    closed = f"{text},"
    spelled = _WHOLES.match(closed)
    return closed.count(",", 0, spelled.end()) if spelled else 0


def _as_items(schema: dict[str, Any]) -> None:
    """The least length of a list in the words for lists: pydantic takes what a validator is before for a text."""
    for choice in schema["anyOf"]:
        if "minLength" in choice:
            choice["minItems"] = choice.pop("minLength")


class Sent(BaseModel):
    """What a client sends, of which nothing is taken for something else than it is."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


# What a body may be, for pages and generated clients to show, and to send as it is. The latent is one of the model that
# ships.
_PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQAQAAAAA3iMLMAAAAH0lEQVR42mNggAH2B0wcAkwCHEwMDCjoww+mHx/gqgBXOgT6D/Dqn"
    "AAAAABJRU5ErkJggg=="
)
_LATENT = [1.3, -0.2, 2.2, -0.5, -0.6, -0.9, 1.8, 0.4, 1.4, -1.3, -0.1, 0.3, 2.8, 1.2, 0.7, 1.4]


def _example(**members: Any) -> ConfigDict:
    """The configuration of a body of JSON that has this example."""
    return ConfigDict(json_schema_extra={"examples": [members]})


class Options(Sent):
    """Options that every verb knows."""

    model: str | None = Field(None, description="`name` or `name@digest` of a loaded model; else the default.")
    format: str | None = Field(None, description="Form of the answer; else `Accept` decides.")

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: object, info: ValidationInfo) -> object:
        """A text of a query or a form as the number or the truth that it spells. One that spells none is left as it is,
        and refused, as is every text of JSON; the context has the place of each option.
        """
        read = _readers(cls).get(info.field_name or "")
        if read is None:
            return value
        places = info.context
        in_json = isinstance(value, str) and places is not None and places[info.field_name].where.startswith("body.")
        return value if in_json else read(value)


_READERS: dict[str, Callable[[object], object]] = {"integer": _whole, "number": _number, "boolean": _truth}


@cache
def _readers(options: type[Options]) -> dict[str, Callable[[object], object]]:
    """What reads each option that is neither a text nor a list."""
    properties = options.model_json_schema()["properties"]
    kinds = {name: (schema.get("anyOf") or [schema])[0].get("type") for name, schema in properties.items()}
    return {name: _READERS[kind] for name, kind in kinds.items() if kind in _READERS}


class EncodeOptions(Options):
    """Options of /encode."""

    draws: int = Field(0, ge=0, description="Draws from each posterior, answered as `z`.")
    seed: Seed | None = Field(None, description="Seed of the draws; else one is chosen and answered.")
    dtype: Literal["float32", "float16"] = Field("float32", description="Number format of the answer.")


class ScoreOptions(Options):
    """Options of /score."""

    k: int = Field(0, ge=0, description="Draws from each posterior, whose bound is answered as `log_likelihood`.")
    seed: Seed | None = Field(None, description="Seed of the draws; else one is chosen and answered.")


class PictureOptions(Options):
    """How pictures are put together."""

    columns: int | None = Field(None, ge=1, description="Pictures in a line; else near square, a path in one.")
    scale: int = Field(1, ge=1, le=32, description="Pixels of the answer for one of the model, each way.")
    quality: int = Field(90, ge=1, le=100, description="Quality of JPEG and WebP.")


class SeededOptions(PictureOptions):
    """The size of pictures that are made from seeds, where the model leaves it open."""

    height: int | None = Field(None, ge=1, description="Height, where sizes are open; else the model's default.")
    width: int | None = Field(None, ge=1, description="Width, where sizes are open; else the model's default.")


class SampleOptions(SeededOptions):
    """Options of /sample."""

    model_config = _example(n=4, seed=3)

    n: int = Field(1, ge=1, description="Number of pictures.")
    seed: Seed | None = Field(None, description="Seed of the latents; else one is chosen and answered.")
    temperature: float = Field(1.0, ge=0, le=100, allow_inf_nan=False, description="Standard deviation of the latents.")
    prior: Literal["standard", "fitted"] | None = Field(
        None, description="N(0, I), or the density fitted to the model's latents; else standard if the model knows it."
    )


class DecodeOptions(PictureOptions):
    """Options of /decode."""


class ReconstructOptions(PictureOptions):
    """Options of /reconstruct."""

    compare: bool = Field(False, description="Show each picture above its reconstruction.")


class PathOptions(SeededOptions):
    """Options of the verbs whose pictures may move."""

    frame_ms: int = Field(100, ge=20, le=10_000, description="Milliseconds a frame, of GIF and APNG.")


class InterpolateOptions(PathOptions):
    """Options of /interpolate."""

    seeds: Annotated[tuple[Seed, ...], Field(fail_fast=True), BeforeValidator(_listed)] | None = Field(
        None,
        min_length=2,
        examples=[[3, 14]],
        description="Seeds whose first latents are the points, as `3,14`.",
        json_schema_extra=_as_items,
    )
    steps: int = Field(9, ge=2, description="Pictures from one point to the next, both included.")
    method: Literal["linear", "slerp"] = Field("linear", description="Straight lines, or great arcs.")
    loop: bool = Field(False, description="Lead back to the first point, without repeating it.")


class TraverseOptions(PathOptions):
    """Options of /traverse."""

    seed: Seed | None = Field(None, description="Seed whose first latent is the start.")
    dims: Annotated[tuple[Dimension, ...], Field(fail_fast=True), BeforeValidator(_listed)] | None = Field(
        None,
        min_length=1,
        examples=[[0, 3, 5]],
        description="Dimensions of the latent, a line each, as `0,3,5`; else the 8 most active.",
        json_schema_extra=_as_items,
    )
    span: float = Field(3.0, gt=0, le=1000, allow_inf_nan=False, description="Lines lead from -span to span.")
    steps: int = Field(9, ge=2, description="Pictures in a line, both ends included.")


Base64 = Annotated[str, Field(description="a picture as base64, or as a base64 data: URI")]
Latent = TypeAliasType("Latent", "list[float | Latent]")
Rows = Annotated[Latent, Field(description="latents, a row each, nested as latent_shape says; a single one is a row")]
Vector = Annotated[Latent, Field(description="one latent, nested as latent_shape says")]


class EncodeBody(EncodeOptions):
    """JSON body of /encode."""

    model_config = _example(images=[_PICTURE])

    images: list[Base64]


class ScoreBody(ScoreOptions):
    """JSON body of /score."""

    model_config = _example(images=[_PICTURE])

    images: list[Base64]


class ReconstructBody(ReconstructOptions):
    """JSON body of /reconstruct."""

    model_config = _example(images=[_PICTURE])

    images: list[Base64]


class DecodeBody(DecodeOptions):
    """JSON body of /decode."""

    model_config = _example(z=_LATENT)

    z: Rows


class Point(Sent):
    """One point of a path: an image (its mu), a latent, or a seed (its first latent). Exactly one of them."""

    image: Base64 | None = None
    z: SkipValidation[Vector] | None = None  # whose numbers numpy reads
    seed: Annotated[Seed, BeforeValidator(_without_point)] | None = None


class InterpolateBody(InterpolateOptions):
    """JSON body of /interpolate: one of images, z, points and seeds."""

    model_config = _example(seeds=[3, 14], steps=5)

    images: list[Base64] | None = None
    z: list[Vector] | None = None
    points: list[Point] | None = None


class TraverseBody(TraverseOptions):
    """JSON body of /traverse: one of images (a single one), z (a single one) and seed."""

    model_config = _example(seed=67, dims=[0, 3, 5])

    images: list[Base64] | None = None
    z: Rows | None = None


class EncodeAnswer(BaseModel):
    """The posterior of each image, a row each, nested as latent_shape says."""

    model: str
    digest: str
    mu: list[Vector]
    logvar: list[Vector] | None = Field(description="null where the model is an autoencoder")
    seed: AnsweredSeed | None = None
    z: list[list[Vector]] | None = Field(None, description="(n, draws, *latent_shape), where draws were asked")


class ScoreAnswer(BaseModel):
    """How well the model explains each image, in nats, a number each."""

    model: str
    digest: str
    recon: list[float] = Field(description="-log p(x given z) at z = mu")
    kl: list[float] | None = Field(description="KL(q, prior); null where the model is an autoencoder")
    elbo: list[float] | None = Field(description="-(recon + kl); null where the model is an autoencoder")
    seed: AnsweredSeed | None = None
    log_likelihood: list[float] | None = Field(None, description="the bound of k draws, where k was asked")


class WarningAnswer(BaseModel):
    """What to know of an answer that the model is not to be trusted for."""

    type: Literal["untrusted-samples", "untrusted-interpolation"]
    detail: str


class PicturesAnswer(BaseModel):
    """Pictures and the latents that they were decoded from."""

    model: str
    digest: str
    inputs: list[Base64] | None = Field(None, description="what /reconstruct was sent, with compare")
    images: list[Base64]
    z: list[Vector]
    seed: AnsweredSeed | None = None
    warnings: list[WarningAnswer] | None = Field(None, description="only where there are any")


class ProblemAnswer(BaseModel):
    """RFC 9457 problem details."""

    type: str = Field(json_schema_extra={"enum": [f"urn:vaeserve:problem:{problem.kind}" for problem in PROBLEMS]})
    title: str
    status: int
    detail: str
    instance: str
    errors: list[Fault] | None = None


class ModelSummary(BaseModel):
    """One loaded model."""

    name: str
    digest: str
    default: bool
    provider: str = Field(description="what really runs its graphs")
    precision: str
    image: ImageSpec
    latent_shape: list[int | None]


class ModelsAnswer(BaseModel):
    """The loaded models."""

    models: list[ModelSummary]


class Limits(BaseModel):
    """What one request may cost."""

    max_body_bytes: int
    max_json_bytes: int
    max_picture_pixels: int
    max_answer_pixels: int
    max_request_rows: int
    max_batch_rows: int
    max_run_pixels: int


class VerdictAnswer(BaseModel):
    """Whether something is to be trusted."""

    trusted: bool | None = Field(description="null where it was not measured, or there is no such prior")
    reason: str


class SampleTrust(BaseModel):
    """Whether samples are to be trusted, by their prior."""

    standard: VerdictAnswer
    fitted: VerdictAnswer


class TrustAnswer(BaseModel):
    """What of a model is to be trusted, as its figures were judged when they were measured."""

    sample: SampleTrust
    interpolate: VerdictAnswer


class ModelAnswer(ModelSummary):
    """One loaded model, with its whole manifest."""

    trust: TrustAnswer
    card: str | None = Field(description="path of its card, a page; null where it has none")
    limits: Limits
    manifest: Manifest


class ReloadAnswer(BaseModel):
    """A model that was loaded anew."""

    model: str
    digest: str = Field(description="of what is served now")
    digest_before: str = Field(description="of what was served when this was asked for")


class HealthAnswer(BaseModel):
    """State of the process."""

    status: Literal["live", "ready"]
