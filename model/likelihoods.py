"""p(x given z): what a decoder's logits say about pixels, as normalised masses and densities."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Bernoulli:
    """A mass over binary pictures; grey is the probability of white.

    Source:  Kingma & Welling 2014, appendix C.1, arXiv:1312.6114
    """

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A fresh binarisation of grey pictures, white with the probability that x says.

        Source:  Burda et al. 2016, section 5, arXiv:1509.00519
        """
        return (torch.rand(x.shape, generator=generator) < x).to(x.dtype)

    def settle(self, x: Tensor) -> Tensor:
        """The binary picture that stands for a grey one where nothing is drawn: white from 128 of 255 up.

        Binary pictures stay as they are, so training's draws pass through unchanged.
        """
        return (x >= 0.5).to(x.dtype)

    def mean(self, logits: Tensor) -> Tensor:
        """The mean of p(x given z), in [0, 1]."""
        return torch.sigmoid(logits)

    def recon(self, logits: Tensor, x: Tensor) -> Tensor:
        """-log p(x given z) of binary x, one value per row.

        Shapes:  logits, x (n, c, h, w) -> (n,)
        Units:   nats, summed over data dimensions
        Raises:  ValueError if the shapes differ
        """
        _same_shape(logits, x)
        return functional.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)


@dataclass(frozen=True)
class Gaussian:
    """A density over grey and colour pictures, with one fixed standard deviation, where 1 is black to white.

    Source:  Rybkin et al. 2021, section 3, arXiv:2006.13202
    """

    sigma: float

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002  # nothing to draw here
        """The pictures as they are."""
        return x

    def settle(self, x: Tensor) -> Tensor:
        """The pictures as they are."""
        return x

    def mean(self, logits: Tensor) -> Tensor:
        """The mean of p(x given z), in [0, 1]."""
        return torch.sigmoid(logits)

    def recon(self, logits: Tensor, x: Tensor) -> Tensor:
        """-log p(x given z), one value per row.

        Shapes:  logits, x (n, c, h, w) -> (n,)
        Units:   nats, summed over data dimensions
        Raises:  ValueError if the shapes differ
        """
        _same_shape(logits, x)
        squared_distance = (x - self.mean(logits)).square().flatten(1).sum(1) / self.sigma**2
        log_normaliser = math.prod(x.shape[1:]) * math.log(2 * math.pi * self.sigma**2)
        return 0.5 * (squared_distance + log_normaliser)


Likelihood = Bernoulli | Gaussian


def _same_shape(logits: Tensor, x: Tensor) -> None:
    if logits.shape != x.shape:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected that of logits, {tuple(logits.shape)}")
