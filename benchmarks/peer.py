"""Our networks inside pythae, so that both sides of a comparison compute the same functions with the same weights.

pythae is wanted beside torch as it is installed here, so in a folder of its own:
`pip install --no-deps --target PYTHAE pythae==0.1.2 cloudpickle`, then `PYTHONPATH=PYTHAE python -m benchmarks.…`.
"""

from pythae import models
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import Tensor

from model.gaussian import DiagonalGaussian
from model.vae import VAE


class Encoder(BaseEncoder):
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


class Decoder(BaseDecoder):
    """Our decoder in pythae's form."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> ModelOutput:
        """The mean of p(x given z)."""
        return ModelOutput(reconstruction=self.vae.decode(z))


def peer(vae: VAE) -> models.VAE:
    """pythae's VAE around our networks, with the Bernoulli likelihood on both sides."""
    height, width, channels = vae.config.image_shape
    config = models.VAEConfig(
        input_dim=(channels, height, width), latent_dim=vae.config.latent_dim, reconstruction_loss="bce"
    )
    return models.VAE(config, encoder=Encoder(vae), decoder=Decoder(vae))
