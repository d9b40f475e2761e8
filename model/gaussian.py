"""The diagonal Gaussian: the posterior q(z given x), its samples, its density and its distance to the prior."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_LOG_2_PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class DiagonalGaussian:
    """N(mu, exp(logvar)), one independent normal per latent dimension and row.

    Shapes:  mu, logvar (n, *latent_shape)
    Raises:  ValueError if the shapes differ
    """

    mu: Tensor
    logvar: Tensor

    def __post_init__(self) -> None:
        _same_shape("logvar", self.logvar, self.mu)

    def sample(self, eps: Tensor) -> Tensor:
        """z = mu + exp(logvar / 2) * eps: the reparameterised sample that this noise gives.

        Shapes:  eps (n, *latent_shape) -> (n, *latent_shape)
        Raises:  ValueError if eps has another shape than mu
        Source:  Kingma & Welling 2014, section 2.4, arXiv:1312.6114
        """
        _same_shape("eps", eps, self.mu)
        return self.mu + torch.exp(self.logvar / 2) * eps

    def kl_per_dimension(self) -> Tensor:
        """KL divergence to N(0, 1) of each latent dimension.

        Shapes:  -> (n, *latent_shape)
        Units:   nats
        Source:  Kingma & Welling 2014, appendix B, arXiv:1312.6114
        """
        # expm1(logvar) - logvar and not exp(logvar) - 1 - logvar: near 0 the latter would round below zero.
        return 0.5 * (self.mu.square() + torch.expm1(self.logvar) - self.logvar)

    def kl(self) -> Tensor:
        """KL divergence to N(0, I), one value per row.

        Shapes:  -> (n,)
        Units:   nats, summed over latent dimensions
        Source:  Kingma & Welling 2014, appendix B, arXiv:1312.6114
        """
        return self.kl_per_dimension().flatten(1).sum(1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density at z, one value per row.

        Shapes:  z (n, *latent_shape) -> (n,)
        Units:   nats, summed over latent dimensions
        Raises:  ValueError if z has another shape than mu
        """
        _same_shape("z", z, self.mu)
        squared_distance = (z - self.mu).square() * torch.exp(-self.logvar)
        return -0.5 * (squared_distance + self.logvar + _LOG_2_PI).flatten(1).sum(1)


def _same_shape(name: str, got: Tensor, expected: Tensor) -> None:
    if got.shape != expected.shape:
        raise ValueError(f"{name}: got shape {tuple(got.shape)}, expected that of mu, {tuple(expected.shape)}")
