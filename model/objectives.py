"""What training maximises: the evidence lower bound, and the schedule of its KL term, as pure functions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.vae import VAE


@dataclass(frozen=True, eq=False)
class Terms:
    """The two parts of the evidence lower bound, one value per row.

    Shapes:  (n,)
    Units:   nats
    """

    recon: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        """-(recon + kl): a lower bound of log p(x), higher is better."""
        return -(self.recon + self.kl)


def elbo_terms(vae: VAE, x: Tensor, eps: Tensor) -> Terms:
    """The bound's parts for each picture, with one draw of z made from eps.

    Shapes:  x (n, c, h, w), eps (n, latent_dim) -> (n,)
    Units:   nats
    Source:  Kingma & Welling 2014, equation 10, arXiv:1312.6114
    """
    posterior = vae.encode(x)
    logits = vae.logits(posterior.sample(eps))
    return Terms(recon=vae.likelihood.recon(logits, vae.likelihood.settle(x)), kl=posterior.kl())


def mean_loss(terms: Terms, *, beta: float) -> Tensor:
    """mean(recon + beta * kl), the number that a step descends.

    Shapes:  -> scalar
    Units:   nats per picture
    Source:  Higgins et al. 2017, equation 4, openreview.net/forum?id=Sy2fzU9gl
    """
    return torch.mean(terms.recon + beta * terms.kl)


def warmed_beta(step: int, *, warmup_steps: int, beta: float) -> float:
    """The weight of the KL term at a step: up a straight line from 0, then constant.

    Source:  Sønderby et al. 2016, section 2.3, arXiv:1602.02282
    """
    return beta * min(1.0, step / warmup_steps) if warmup_steps > 0 else beta
