"""Our networks inside pythae, so that both sides of a comparison compute the same functions with the same weights.

There they stand as one writes them for it, of torch's own layers: how our layers compute what they do is ours.

pythae is wanted beside torch as it is installed here, so in a folder of its own:
`pip install --no-deps --target PYTHAE pythae==0.1.2 cloudpickle`, then `PYTHONPATH=PYTHAE python -m benchmarks.…`.
"""

import copy

from pythae import models
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import Tensor, nn
from torch.nn import functional

from model.gaussian import DiagonalGaussian
from model.networks.linear import Linear
from model.networks.norm import GroupNorm
from model.networks.residual import ResidualBlock
from model.vae import VAE


class Encoder(BaseEncoder):  # type: ignore[misc]
    """Our encoder in pythae's form."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor) -> ModelOutput:
        """Mean and log variance."""
        posterior = self.vae.encode(x)
        if not isinstance(posterior, DiagonalGaussian):
            raise TypeError("encoder: got an autoencoder, expected a vae")
        return ModelOutput(embedding=posterior.mu, log_covariance=posterior.logvar)


class Decoder(BaseDecoder):  # type: ignore[misc]
    """Our decoder in pythae's form."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> ModelOutput:
        """The mean of p(x given z)."""
        return ModelOutput(reconstruction=self.vae.decode(z))


class PlainBlock(ResidualBlock):
    """A residual block that enlarges features and then convolves them."""

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """The sum."""
        change = self.first(enlarged(functional.silu(self.first_norm(features)), size))
        change = self.second(functional.silu(self.second_norm(change)))
        added: Tensor = enlarged(self.skip(features), size) + change
        return added


def enlarged(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Twice the size, then cropped."""
    if features.shape[-2:] == size:
        return features
    return functional.interpolate(features, scale_factor=2.0, mode="nearest")[:, :, : size[0], : size[1]]


def plain(vae: VAE) -> VAE:
    """The same weights in networks of torch's own layers."""
    written = copy.deepcopy(vae)
    for module in written.modules():
        if isinstance(module, Linear):
            module.__class__ = nn.Linear  # type: ignore[assignment]  # its layout is the same
        elif isinstance(module, GroupNorm):
            module.__class__ = nn.GroupNorm  # type: ignore[assignment]  # as above
        elif isinstance(module, ResidualBlock):
            module.__class__ = PlainBlock
    return written


def peer(vae: VAE) -> models.VAE:
    """pythae's VAE around our networks, with the Bernoulli likelihood on both sides."""
    vae = plain(vae)
    height, width, channels = vae.config.image_shape
    config = models.VAEConfig(
        input_dim=(channels, height, width), latent_dim=vae.config.latent_dim, reconstruction_loss="bce"
    )
    return models.VAE(config, encoder=Encoder(vae), decoder=Decoder(vae))
