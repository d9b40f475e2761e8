"""The variational autoencoder and its family: a posterior from pictures, pictures from latents."""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from model.errors import BadSetting
from model.gaussian import SCALE_HEADS, DiagonalGaussian, Point, Posterior, ScaleHead, to_logvar
from model.likelihoods import (
    SIGMA_FLOOR,
    Bernoulli,
    ContinuousBernoulli,
    DiscretisedLogistic,
    FixedSigma,
    Gaussian,
    LearnedSigma,
    Levels,
    Likelihood,
    OptimalSigma,
)
from model.networks.presets import PRESETS
from model.networks.pyramid import Shape

FAMILIES = ("vae", "autoencoder")
LIKELIHOODS = ("gaussian", "bernoulli", "continuous_bernoulli", "logistic")
_DENSITIES = ("gaussian", "continuous_bernoulli")


@dataclass(frozen=True)
class ModelConfig:
    """What a model is: the shape of its pictures and latents, its networks and its likelihood.

    Raises:  BadSetting if a field lies outside its range
    """

    height: int
    """Height of a picture, pixels."""
    width: int
    """Width of a picture, pixels."""
    channels: int
    """Channels of a picture: 1 is grey, 3 is RGB."""
    family: str = "vae"
    """`vae`, or `autoencoder`: deterministic, trained on reconstruction alone."""
    latent_dim: int = 16
    """Numbers in one z."""
    preset: str = "small"
    """Which networks: `small` is plain convolutions and ReLU; `residual` and `mlp` reach better likelihoods."""
    features: int = 0
    """Channels of the largest feature map, or units of a hidden layer of `mlp`; 0 takes the preset's."""
    depth: int = 0
    """Residual blocks at each size, or hidden layers of `mlp`; 0 takes the preset's."""
    likelihood: str = "gaussian"
    """p(x given z): `gaussian`, `bernoulli` on binarised pictures, `continuous_bernoulli`, discretised `logistic`."""
    sigma: float | str | None = 0.3
    """Standard deviation of the gaussian, where 1 is black to white: a number, `learned` or `optimal`; else null."""
    dequantised: bool = False
    """Whether a density sees pictures with uniform noise of one grey level added, so that bits/dim can be given."""
    scale_head: ScaleHead = "logvar"
    """What the encoder's second output is before it becomes logvar: `logvar`, `log_sigma`, `variance` or `sigma`."""
    logvar_range: tuple[float, float] = (-15.0, 15.0)
    """Clamp of the posterior's log variance, natural log of squared units of z."""

    def __post_init__(self) -> None:
        for name, known in (
            ("family", FAMILIES),
            ("preset", PRESETS),
            ("likelihood", LIKELIHOODS),
            ("scale_head", SCALE_HEADS),
        ):
            if getattr(self, name) not in known:
                raise BadSetting(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(known)}")
        preset = PRESETS[self.preset]
        for name in ("features", "depth"):
            # 0 is false, and so is False, which is refused below as any other value that is no whole number.
            if getattr(self, name) == 0 and not isinstance(getattr(self, name), bool):
                object.__setattr__(self, name, getattr(preset, name))
        for name in ("height", "width", "channels", "latent_dim", "features", "depth"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BadSetting(f"{name}: got {value!r}, expected a whole number from 1")
        if self.depth > preset.largest_depth:
            raise BadSetting(f"depth: got {self.depth}, expected at most {preset.largest_depth} with {self.preset}")
        self._check_likelihood()
        low, high = self.logvar_range
        if not -80 <= low < high <= 80:  # the exponential of 80 is still a float32
            raise BadSetting(f"logvar_range: got {self.logvar_range}, expected low < high within -80 to 80")

    def _check_likelihood(self) -> None:
        if self.likelihood != "gaussian" and self.sigma is not None:
            raise BadSetting(f"sigma: got {self.sigma!r}, expected none with the {self.likelihood} likelihood")
        is_number = isinstance(self.sigma, float | int) and SIGMA_FLOOR <= self.sigma < math.inf
        if self.likelihood == "gaussian" and not is_number and self.sigma not in ("learned", "optimal"):
            expected = "a number from 1/512, learned or optimal with the gaussian likelihood"
            raise BadSetting(f"sigma: got {self.sigma!r}, expected {expected}")
        if self.dequantised and self.likelihood not in _DENSITIES:
            expected = f"it with {' and '.join(_DENSITIES)} only; {self.likelihood} is a mass already"
            raise BadSetting(f"dequantised: got it with {self.likelihood}, expected {expected}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one picture at the edge: (h, w, c)."""
        return self.height, self.width, self.channels


class VAE(nn.Module):
    """An encoder, a decoder and the likelihood that ties them.

    Pictures come in as the likelihood sees them: pass them through `likelihood.settle`, or `likelihood.draw`, first.

    Shapes:  x (n, c, h, w) float32 in [0, 1]; z (*k, n, latent_dim)
    Source:  Kingma & Welling 2014, arXiv:1312.6114
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        preset = PRESETS[config.preset]
        shape = Shape(
            height=config.height,
            width=config.width,
            channels=config.channels,
            latent_dim=config.latent_dim,
            features=config.features,
            depth=config.depth,
        )
        outputs_per_dimension = 2 if config.family == "vae" else 1
        self.encoder = preset.encoder(shape, outputs=outputs_per_dimension * config.latent_dim)
        self.decoder = preset.decoder(shape)
        self.likelihood = _likelihood(config)
        self.decoding_format = preset.decoding_format
        self.to(memory_format=preset.memory_format)  # type: ignore[call-overload]

    def encode(self, x: Tensor) -> Posterior:
        """q(z given x): a diagonal Gaussian, or the point of an autoencoder.

        Shapes:  (n, c, h, w) -> (n, latent_dim)
        Raises:  ValueError if the model takes pictures of another shape
        """
        expected = (self.config.channels, self.config.height, self.config.width)
        if x.shape[1:] != expected:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (n, {', '.join(map(str, expected))})")
        # float32 also where the networks run in bfloat16: densities add up what that would round away.
        outputs: Tensor = self.encoder(x).float()
        if self.config.family == "autoencoder":
            return Point(outputs)
        mu, raw = outputs.chunk(2, dim=-1)
        low, high = self.config.logvar_range
        return DiagonalGaussian(mu, to_logvar(raw, self.config.scale_head).clamp(low, high))

    def logits(self, z: Tensor) -> Tensor:
        """What the likelihood reads.

        Shapes:  (*k, n, latent_dim) -> (*k, n, c, h, w)
        """
        logits: Tensor = self.decoder(z.flatten(end_dim=-2)).float()
        return logits.reshape(*z.shape[:-1], *logits.shape[1:])

    def decode(self, z: Tensor) -> Tensor:
        """x_hat, the mean of p(x given z).

        Shapes:  (n, latent_dim) -> (n, c, h, w) in [0, 1]
        """
        return self.likelihood.mean(self.logits(z))


def _likelihood(config: ModelConfig) -> Likelihood:
    levels = Levels(config.dequantised)
    if config.likelihood == "bernoulli":
        return Bernoulli()
    if config.likelihood == "continuous_bernoulli":
        return ContinuousBernoulli(levels)
    if config.likelihood == "logistic":
        return DiscretisedLogistic()
    if config.sigma == "learned":
        return Gaussian(LearnedSigma(), levels=levels)
    if config.sigma == "optimal":
        return Gaussian(OptimalSigma(), levels=levels)
    assert isinstance(config.sigma, float | int), "the config has checked it"  # noqa: S101
    return Gaussian(FixedSigma(config.sigma), levels=levels)
