"""The manifest of a bundle: everything that a service or a client may ask about it, field by field."""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from service.files import NAME_PATTERN

FORMAT = 1
MANIFEST = "manifest.json"
ENCODER, DECODER, SCORER = "encoder.onnx", "decoder.onnx", "scorer.onnx"
PRIOR, PROBE = "prior.safetensors", "probe.safetensors"
CARD, PICTURES = "card.md", "pictures/"
MAX_CARD_BYTES = 2**18

# The fields that change answers. The rest (card, probe, metrics, names) may differ under one digest.
_ANSWERING_FIELDS = frozenset(
    {"format", "family", "image", "latent_shape", "likelihood", "prior", "scale_head", "logvar_range"}
)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ImageSpec(_Part):
    """The shape of one picture on the wire. Where sizes are open, height and width are null and may be any multiple of
    the stride up to `max_side`.
    """

    height: int | None = Field(ge=1)
    width: int | None = Field(ge=1)
    channels: Literal[1, 3]
    stride: int = Field(1, ge=1, description="height and width are multiples of it; pixels to one place of a latent")
    default_side: int | None = Field(None, ge=1, description="height and width where a request names none; open sizes")
    max_side: int | None = Field(None, ge=1, description="largest height and width; open sizes")

    @model_validator(mode="after")
    def _open_or_not(self) -> "ImageSpec":
        sides = (self.default_side, self.max_side)
        if (self.height is None) != (self.width is None) or any((side is None) == self.is_open for side in sides):
            raise ValueError(
                "open sizes have neither height nor width but default_side and max_side, others the reverse"
            )
        for side in (self.height, self.width, *sides):
            if side is not None and side % self.stride:
                raise ValueError(f"every side is a multiple of the stride {self.stride}, {side} is not")
        if self.default_side is not None and self.max_side is not None and self.default_side > self.max_side:
            raise ValueError("default_side is at most max_side")
        return self

    @property
    def is_open(self) -> bool:
        """Whether pictures may have any size."""
        return self.height is None

    @property
    def shape(self) -> tuple[int | None, int | None, int]:
        """(h, w, c), None where open."""
        return self.height, self.width, self.channels

    @property
    def default_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of a picture where nobody asked for a size."""
        height, width = self.height or self.default_side, self.width or self.default_side
        assert height is not None and width is not None, "the validator has checked it"  # noqa: PT018, S101
        return height, width, self.channels


class Likelihood(_Part):
    """p(x given z), as the source was trained with it."""

    kind: Literal["gaussian", "bernoulli", "continuous_bernoulli", "logistic"]
    sigma: float | None = Field(None, gt=0, description="of a gaussian, in units of x in [0, 1]")
    binarised_at: int | None = Field(
        None, ge=0, le=255, description="grey level at which encoder and scorer threshold their pictures"
    )


class Source(_Part):
    """Where the graphs came from."""

    kind: Literal["vaeserve", "diffusers", "pythae", "optimum", "onnx", "torch"]
    version: str = Field(description="of the library that the source was read with")
    network: str = Field(description="what was frozen: a preset, a class, a producer")


class FileEntry(_Part):
    """What a file of the bundle must be, to the byte."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=1)


class Tolerance(_Part):
    """Largest difference to the source that is allowed in fp32: mu, logvar and log-likelihood absolute, pictures in
    grey levels. Log-likelihoods, sums over a picture, are relative to their size above 1, and mu is to the standard
    deviation of all of the source's, where that is above 1.
    """

    mu: float = Field(gt=0)
    logvar: float = Field(gt=0)
    image: int = Field(ge=0)
    log_likelihood: float = Field(1e-4, gt=0)


class ReducedTolerance(_Part):
    """Largest difference to the source that is allowed below fp32: mu in units of the posterior's sigma, or of a
    hundredth of mu's spread where that is larger, logvar absolute, pictures by their PSNR. The means are over all
    numbers of the probe, as one that rounds badly lets the largest say little of the others.
    """

    mu_in_sigma: float = Field(gt=0)
    mu_in_sigma_mean: float | None = Field(None, gt=0, description="null in bundles made before it was")
    logvar: float | None = Field(None, gt=0, description="null of an autoencoder, and in bundles made before it was")
    logvar_mean: float | None = Field(None, gt=0, description="as logvar")
    psnr_db: float


class Difference(_Part):
    """Largest and mean absolute difference that was measured."""

    max: float = Field(ge=0)
    mean: float = Field(ge=0)


class Parity(_Part):
    """What was measured between the graphs and their source when the bundle was made. An autoencoder has no logvar."""

    mu: Difference
    logvar: Difference | None
    image: Difference
    log_likelihood: Difference | None = None
    mu_in_sigma: Difference | None = Field(
        None,
        description="mu in units of the posterior's sigma, or of a hundredth of mu's spread where that is larger; "
        "below fp32",
    )
    psnr_db: float | None = Field(None, description="of all pictures against the source's; below fp32")
    shapes: tuple[tuple[int, int, int], ...] = Field(
        min_length=1, max_length=64, description="rows, height and width of the runs"
    )
    pictures: int
    real_pictures: int = Field(0, ge=0, description="real ones among them; the others were generated, or noise")


class Variant(_Part):
    """What a precision below fp32 gains, measured against the same graphs in fp32 when the bundle was made."""

    encoder_speedup: float = Field(gt=0)
    decoder_speedup: float = Field(gt=0)
    batch_rows: int = Field(ge=1)
    size_ratio: float = Field(gt=0, description="bytes of the graphs, those in fp32 being 1")
    machine: str


class Aggregate(_Part):
    """What the posteriors of all test pictures look like together. N(0, I) has means, correlations and an MMD of 0, and
    variances of 1.
    """

    mean: tuple[float, ...] = Field(description="per dimension")
    variance: tuple[float, ...] = Field(description="per dimension")
    largest_correlation: float = Field(description="of two dimensions, absolute")
    mmd: float | None = Field(None, description="squared maximum mean discrepancy to N(0, I); null without a posterior")
    mmd_spread: float | None = Field(None, description="standard deviation it would have, were there no discrepancy")


class Realism(_Part):
    """How decoded samples of a prior lie among test pictures, by Euclidean distance of pixels."""

    density: float = Field(description="samples around a test picture; smooth pictures have more")
    expected_density: float = Field(description="the same, were the samples real pictures")
    coverage: float = Field(description="share of test pictures with a sample near them")
    expected_coverage: float = Field(description="the same, were the samples real pictures")


class Samples(_Part):
    """Realism of what /sample gives, by prior; null where it was not measured or there is no such prior."""

    standard: Realism | None
    fitted: Realism | None


class Verdict(_Part):
    """Whether something is to be trusted, as its figures were judged when they were measured."""

    trusted: bool
    # In ASCII, and in one line: it stands in a header too.
    reason: str = Field(pattern=r"^[ -~]{1,1000}$", description="a sentence or two")


class Trust(_Part):
    """Verdicts on what is served; null where nothing was measured that would tell."""

    standard: Verdict | None = Field(description="/sample from N(0, I)")
    fitted: Verdict | None = Field(description="/sample from the fitted prior")
    interpolate: Verdict | None = Field(description="/interpolate")


class Diagnostics(_Part):
    """How the latent space is used, measured on test pictures."""

    kl_per_dimension: tuple[float, ...] | None = Field(
        None, description="nats, mean over pictures; null without a posterior"
    )
    active_units: int = Field(description="dimensions whose mu varies by more than 0.01 over pictures")
    active_dimensions: tuple[int, ...] | None = Field(None, description="which these are, counted from 0")
    mu_min: float
    mu_max: float
    aggregate: Aggregate | None = None
    samples: Samples | None = None
    trust: Trust | None = None


def _kind_of_tolerance(found: Any) -> str:
    reduced = "psnr_db" in found if isinstance(found, dict) else isinstance(found, ReducedTolerance)
    return "reduced" if reduced else "fp32"


RelativePath = Annotated[str, Field(pattern=NAME_PATTERN)]
Precision = Literal["fp32", "fp16", "int8"]
AnyTolerance = Annotated[
    Annotated[Tolerance, Tag("fp32")] | Annotated[ReducedTolerance, Tag("reduced")], Discriminator(_kind_of_tolerance)
]


def _finite(metrics: dict[str, Any]) -> dict[str, Any]:
    """Whatever measured a model may say of it, in numbers that JSON has."""
    try:
        json.dumps(metrics, allow_nan=False)
    except ValueError as error:
        raise ValueError("got NaN or Infinity, expected numbers that JSON has") from error
    return metrics


class Manifest(_Part):
    """`manifest.json`: everything that a service or a client may ask about a bundle."""

    format: Literal[1]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    family: Literal["vae", "autoencoder"]
    image: ImageSpec
    latent_shape: tuple[Annotated[int, Field(ge=1)] | None, ...] = Field(min_length=1)
    likelihood: Likelihood | None = Field(description="null where the source does not say")
    prior: Literal["standard", "none"] = Field(description="what the latents were trained towards: N(0, I), or nothing")
    scale_head: Literal["logvar", "log_sigma", "variance", "sigma"] | None
    logvar_range: tuple[float, float] | None
    latent_scale: float | None = Field(None, description="informative: z on the wire is unscaled")
    latent_shift: float | None = Field(None, description="informative: z on the wire is not shifted")
    precision: Precision
    files: dict[RelativePath, FileEntry]
    opset: int
    source: Source
    tolerance: AnyTolerance
    parity: Parity
    variant: Variant | None = Field(None, description="below fp32")
    diagnostics: Diagnostics | None
    metrics: Annotated[dict[str, Any], AfterValidator(_finite)] | None
    licence: str | None

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        if (self.family == "autoencoder") != (self.scale_head is None):
            raise ValueError("a vae has a scale_head, an autoencoder has none")
        if (self.family == "autoencoder") != (self.prior == "none"):
            raise ValueError("a vae has the prior standard, an autoencoder none")
        if isinstance(self.tolerance, Tolerance) != (self.precision == "fp32"):
            raise ValueError("tolerance is absolute in fp32 and in units of sigma and decibels below it")
        open_axes = tuple(axis is None for axis in self.latent_shape)
        expected = (False, True, True) if self.image.is_open else (False,) * len(open_axes)
        if open_axes != expected:
            raise ValueError("latent_shape is (channels, null, null) where sizes are open, and whole numbers elsewhere")
        if PRIOR in self.files and len(open_axes) != 1:
            raise ValueError(f"latent_shape has one axis where {PRIOR} is there, {len(open_axes)} were found")
        return self

    @property
    def label(self) -> str:
        """`name@digest`, as `X-Model` carries it."""
        return f"{self.name}@{self.digest}"

    def latent_shape_of(self, height: int, width: int) -> tuple[int, ...]:
        """The shape of the latent of a picture of this size."""
        channels, *axes = self.latent_shape
        if not self.image.is_open:
            return tuple(axis for axis in self.latent_shape if axis is not None)
        assert channels is not None and len(axes) == 2, "the validator has checked it"  # noqa: PT018, S101
        return channels, height // self.image.stride, width // self.image.stride

    def image_shape_of(self, latent_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(h, w, c) of the picture that a latent of this shape decodes to."""
        if not self.image.is_open:
            return self.image.default_shape
        _, rows, columns = latent_shape
        return rows * self.image.stride, columns * self.image.stride, self.image.channels


def digest(manifest: dict[str, Any]) -> str:
    """What identifies answers: sha256 over the names and hashes of graphs and prior and the fields that change answers.

    Takes the manifest as plain JSON, before its digest is known.
    """
    hashes = sorted((name, entry["sha256"]) for name, entry in manifest["files"].items() if _answers(name))
    fields = {name: manifest[name] for name in sorted(_ANSWERING_FIELDS)}
    return hashlib.sha256(json.dumps([hashes, fields], sort_keys=True).encode()).hexdigest()


def _answers(file: str) -> bool:
    return file.endswith(".onnx") or file == PRIOR
