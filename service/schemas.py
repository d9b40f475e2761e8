"""What a client may send as options and JSON, and what JSON it gets back. OpenAPI is made from these classes."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from service.errors import PROBLEMS, Fault, too_large
from service.latents import MAX_SEED

# Named for generated clients, whose integers have 32 bits else.
_INT64: dict[str, Any] = {"format": "int64"}
Seed = Annotated[int, Field(ge=0, le=MAX_SEED, json_schema_extra=_INT64)]
AnsweredSeed = Annotated[int, Field(json_schema_extra=_INT64)]
Dimension = Annotated[int, Field(ge=0)]


# Seeds or dimensions in one list, whatever rows a request may have.
_MOST_LISTED = 65_536


def _split(value: object) -> object:
    """`seeds=3,14` and `dims=0,3` as they stand in a query, if they are no more than any request may cost rows.

    Raises:  TooLarge
    """
    listed = value.split(",", _MOST_LISTED) if isinstance(value, str) else value
    if isinstance(listed, list) and len(listed) > _MOST_LISTED:
        raise too_large("rows", got=len(listed), limit=_MOST_LISTED, unit="rows")
    return listed


def _as_items(schema: dict[str, Any]) -> None:
    """The least length of a list in the words for lists: pydantic takes what a validator is before for a text."""
    for choice in schema["anyOf"]:
        if "minLength" in choice:
            choice["minItems"] = choice.pop("minLength")


class Sent(BaseModel):
    """What a client sends, of which nothing is taken for something else than it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_is_a_number(cls, value: object, info: ValidationInfo) -> object:
        """Nor a number a truth, as they are to Python. Texts, as a query has them, are read as what they stand for."""
        is_truth = cls.model_fields[info.field_name or ""].annotation is bool
        if is_truth and type(value) in (int, float):
            raise ValueError("true or false")
        listed = value[:_MOST_LISTED] if isinstance(value, list) else [value]
        if not is_truth and any(type(item) is bool for item in listed):
            raise ValueError("a number or a text")
        return value


class Options(Sent):
    """Options that every verb knows."""

    model: str | None = Field(None, description="`name` or `name@digest` of a loaded model; else the default.")
    format: str | None = Field(None, description="Form of the answer; else `Accept` decides.")


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

    seeds: Annotated[tuple[Seed, ...], Field(fail_fast=True), BeforeValidator(_split)] | None = Field(
        None,
        min_length=2,
        description="Seeds whose first latents are the points, as `3,14`.",
        json_schema_extra=_as_items,
    )
    steps: int = Field(9, ge=2, description="Pictures from one point to the next, both included.")
    method: Literal["linear", "slerp"] = Field("linear", description="Straight lines, or great arcs.")
    loop: bool = Field(False, description="Lead back to the first point, without repeating it.")


class TraverseOptions(PathOptions):
    """Options of /traverse."""

    seed: Seed | None = Field(None, description="Seed whose first latent is the start.")
    dims: Annotated[tuple[Dimension, ...], Field(fail_fast=True), BeforeValidator(_split)] | None = Field(
        None,
        min_length=1,
        description="Dimensions of the latent, a line each, as `0,3,5`; else the 8 most active.",
        json_schema_extra=_as_items,
    )
    span: float = Field(3.0, gt=0, le=1000, allow_inf_nan=False, description="Lines lead from -span to span.")
    steps: int = Field(9, ge=2, description="Pictures in a line, both ends included.")


Base64 = Annotated[str, Field(description="a picture as base64, or as a base64 data: URI")]
Vector = Annotated[list[Any], Field(description="one latent, nested as latent_shape says")]


class EncodeBody(EncodeOptions):
    """JSON body of /encode."""

    images: list[Base64]


class ScoreBody(ScoreOptions):
    """JSON body of /score."""

    images: list[Base64]


class ReconstructBody(ReconstructOptions):
    """JSON body of /reconstruct."""

    images: list[Base64]


class DecodeBody(DecodeOptions):
    """JSON body of /decode."""

    z: list[Vector] | Vector


class Point(Sent):
    """One point of a path: an image (its mu), a latent, or a seed (its first latent). Exactly one of them."""

    image: Base64 | None = None
    z: Vector | None = None
    seed: Seed | None = None


class InterpolateBody(InterpolateOptions):
    """JSON body of /interpolate: one of images, z, points and seeds."""

    images: list[Base64] | None = None
    z: list[Vector] | None = None
    points: list[Point] | None = None


class TraverseBody(TraverseOptions):
    """JSON body of /traverse: one of images (a single one), z (a single one) and seed."""

    images: list[Base64] | None = None
    z: list[Vector] | Vector | None = None


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
    image: dict[str, int | None]
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
    manifest: dict[str, Any]


class ReloadAnswer(BaseModel):
    """A model that was loaded anew."""

    model: str
    digest: str = Field(description="of what is served now")
    digest_before: str = Field(description="of what was served when this was asked for")


class HealthAnswer(BaseModel):
    """State of the process."""

    status: Literal["live", "ready"]
