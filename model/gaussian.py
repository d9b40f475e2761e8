"""Posteriors q(z given x): the diagonal Gaussian of a VAE, the point of an autoencoder, heads that emit them."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

ScaleHead = Literal["logvar", "log_sigma", "variance", "sigma"]
SCALE_HEADS = get_args(ScaleHead)

_LOG_2_PI = math.log(2 * math.pi)
# Below this, softplus(raw) is exp(raw) to float32's last digit, and its logarithm is raw itself.
_SOFTPLUS_IS_EXP = -15.0


@dataclass(frozen=True, eq=False)
class DiagonalGaussian:
    """N(mu, exp(logvar)), one independent normal per latent dimension and row.

    Shapes:  mu, logvar (n, latent_dim)
    Raises:  ValueError if the shapes differ
    """

    mu: Tensor
    logvar: Tensor

    def __post_init__(self) -> None:
        _same_shape("logvar", self.logvar, self.mu)

    def sample(self, eps: Tensor) -> Tensor:
        """z = mu + exp(logvar / 2) * eps: the reparameterised sample that this noise gives.

        Shapes:  eps (*k, n, latent_dim) -> (*k, n, latent_dim)
        Raises:  ValueError if a row of eps has another shape than one of mu
        Source:  Kingma & Welling 2014, section 2.4, arXiv:1312.6114
        """
        _same_rows("eps", eps, self.mu)
        return self.mu + torch.exp(self.logvar / 2) * eps

    def kl_per_dimension(self) -> Tensor:
        """KL divergence to N(0, 1) of each latent dimension.

        Shapes:  -> (n, latent_dim)
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
        return self.kl_per_dimension().sum(-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density at z, one value per row.

        Shapes:  z (*k, n, latent_dim) -> (*k, n)
        Units:   nats, summed over latent dimensions
        Raises:  ValueError if a row of z has another shape than one of mu
        """
        _same_rows("z", z, self.mu)
        squared_distance = (z - self.mu).square() * torch.exp(-self.logvar)
        return -0.5 * (squared_distance + self.logvar + _LOG_2_PI).sum(-1)

    def detach(self) -> "DiagonalGaussian":
        """The same density, through which no gradient flows."""
        return DiagonalGaussian(self.mu.detach(), self.logvar.detach())


@dataclass(frozen=True, eq=False)
class Point:
    """All mass at mu: what an autoencoder's encoder gives. It has no density, and no KL term is asked of it.

    Shapes:  mu (n, latent_dim)
    """

    mu: Tensor

    def sample(self, eps: Tensor) -> Tensor:
        """mu, whatever the noise.

        Shapes:  eps (*k, n, latent_dim) -> (*k, n, latent_dim)
        Raises:  ValueError if a row of eps has another shape than one of mu
        """
        _same_rows("eps", eps, self.mu)
        return self.mu.expand(eps.shape)

    def kl_per_dimension(self) -> Tensor:
        """Zeros: reconstruction is all that an autoencoder is trained on.

        Shapes:  -> (n, latent_dim)
        """
        return torch.zeros_like(self.mu)

    def kl(self) -> Tensor:
        """Zeros.

        Shapes:  -> (n,)
        """
        return self.kl_per_dimension().sum(-1)


Posterior = DiagonalGaussian | Point


def standard_log_prob(z: Tensor) -> Tensor:
    """Log density of the prior, N(0, I), one value per row.

    Shapes:  z (*k, n, latent_dim) -> (*k, n)
    Units:   nats, summed over latent dimensions
    """
    return -0.5 * (z.square() + _LOG_2_PI).sum(-1)


def to_logvar(raw: Tensor, head: ScaleHead) -> Tensor:
    """The natural log of the variance that a scale head's raw output stands for.

    `logvar` is the raw output, `log_sigma` half of it; `variance` and `sigma` are its softplus.

    Shapes:  -> as raw
    """
    if head == "logvar":
        return raw
    if head == "log_sigma":
        return 2 * raw
    return _log_softplus(raw) if head == "variance" else 2 * _log_softplus(raw)


def _log_softplus(raw: Tensor) -> Tensor:
    # The logarithm must not see the 0 that softplus rounds to, or its gradient would be not a number.
    return torch.where(raw < _SOFTPLUS_IS_EXP, raw, functional.softplus(raw.clamp(min=_SOFTPLUS_IS_EXP)).log())


def _same_shape(name: str, got: Tensor, expected: Tensor) -> None:
    if got.shape != expected.shape:
        raise ValueError(f"{name}: got shape {tuple(got.shape)}, expected that of mu, {tuple(expected.shape)}")


def _same_rows(name: str, got: Tensor, expected: Tensor) -> None:
    if got.shape[-expected.ndim :] != expected.shape:
        raise ValueError(f"{name}: got shape {tuple(got.shape)}, expected (…, {', '.join(map(str, expected.shape))})")
