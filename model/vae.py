"""The variational autoencoder: a posterior from pictures, pictures from latents."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.errors import BadSetting
from model.gaussian import DiagonalGaussian
from model.likelihoods import Bernoulli, Gaussian, Likelihood
from model.networks import SmallDecoder, SmallEncoder

PRESETS = ("small",)
LIKELIHOODS = ("gaussian", "bernoulli")


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
    latent_dim: int = 16
    """Numbers in one z."""
    preset: str = "small"
    """Which networks: `small` is plain convolutions, upsampling and ReLU."""
    channels_base: int = 32
    """Channels of the largest feature map; the smaller maps have two and three times as many."""
    likelihood: str = "gaussian"
    """p(x given z): `gaussian`, or `bernoulli` on binarised pictures."""
    sigma: float | None = 0.3
    """Standard deviation of the gaussian likelihood, where 1 is black to white; null for bernoulli."""
    logvar_range: tuple[float, float] = (-15.0, 15.0)
    """Clamp of the posterior's log variance, natural log of squared units of z."""

    def __post_init__(self) -> None:
        for name in ("height", "width", "channels", "latent_dim", "channels_base"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BadSetting(f"{name}: got {value!r}, expected a whole number from 1")
        if self.preset not in PRESETS:
            raise BadSetting(f"preset: got {self.preset!r}, expected one of {', '.join(PRESETS)}")
        if self.likelihood not in LIKELIHOODS:
            raise BadSetting(f"likelihood: got {self.likelihood!r}, expected one of {', '.join(LIKELIHOODS)}")
        if self.likelihood == "bernoulli" and self.sigma is not None:
            raise BadSetting(f"sigma: got {self.sigma!r}, expected none with the bernoulli likelihood")
        if self.likelihood == "gaussian" and (self.sigma is None or not 0 < self.sigma < math.inf):
            raise BadSetting(f"sigma: got {self.sigma!r}, expected a number above 0 with the gaussian likelihood")
        low, high = self.logvar_range
        if not -80 <= low < high <= 80:  # the exponential of 80 is still a float32
            raise BadSetting(f"logvar_range: got {self.logvar_range}, expected low < high within -80 to 80")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one picture at the edge: (h, w, c)."""
        return self.height, self.width, self.channels


class VAE(nn.Module):
    """An encoder, a decoder and the likelihood that ties them.

    Shapes:  x (n, c, h, w) float32 in [0, 1]; z (n, latent_dim)
    Source:  Kingma & Welling 2014, arXiv:1312.6114
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        shape = {
            "height": config.height,
            "width": config.width,
            "channels": config.channels,
            "channels_base": config.channels_base,
            "latent_dim": config.latent_dim,
        }
        self.encoder = SmallEncoder(**shape)
        self.decoder = SmallDecoder(**shape)
        self.likelihood: Likelihood = Bernoulli() if config.sigma is None else Gaussian(config.sigma)
        # With channels last in memory, convolutions on CPU are faster.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """q(z given x); a model of binarised pictures thresholds grey ones first.

        Shapes:  (n, c, h, w) -> mu, logvar (n, latent_dim)
        Raises:  ValueError if the model takes pictures of another shape
        """
        expected = (self.config.channels, self.config.height, self.config.width)
        if x.shape[1:] != expected:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (n, {', '.join(map(str, expected))})")
        mu, logvar = self.encoder(self.likelihood.settle(x))
        low, high = self.config.logvar_range
        return DiagonalGaussian(mu, logvar.clamp(low, high))

    def logits(self, z: Tensor) -> Tensor:
        """What the likelihood reads: (n, latent_dim) -> (n, c, h, w)."""
        logits: Tensor = self.decoder(z)
        return logits

    def decode(self, z: Tensor) -> Tensor:
        """x_hat, the mean of p(x given z).

        Shapes:  (n, latent_dim) -> (n, c, h, w) in [0, 1]
        """
        return self.likelihood.mean(self.logits(z))
