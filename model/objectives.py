"""What training maximises: the evidence lower bound and the importance-weighted bound, as functions of one batch."""

import math
from dataclasses import dataclass

from torch import Tensor

from model.gaussian import DiagonalGaussian, standard_log_prob
from model.vae import VAE


@dataclass(frozen=True, eq=False)
class Terms:
    """The two parts of the evidence lower bound, for each picture.

    Shapes:  recon (n,), kl_per_dimension (n, latent_dim)
    Units:   nats
    """

    recon: Tensor
    kl_per_dimension: Tensor

    @property
    def kl(self) -> Tensor:
        """KL divergence to the prior, summed over latent dimensions: (n,) nats."""
        return self.kl_per_dimension.sum(-1)

    @property
    def elbo(self) -> Tensor:
        """-(recon + kl): a lower bound of log p(x), higher is better: (n,) nats."""
        return -(self.recon + self.kl)


@dataclass(frozen=True, eq=False)
class ImportanceWeighted:
    """The k-sample bound of each picture, what a step descends to raise it, and the parts of its elbo.

    Shapes:  bound (n,); loss scalar
    Units:   nats; only the gradient of loss has a meaning, its value has none
    """

    bound: Tensor
    loss: Tensor
    terms: Terms


def elbo_terms(vae: VAE, x: Tensor, eps: Tensor) -> Terms:
    """The bound's parts for each picture, with one draw of z made from eps.

    Shapes:  x (n, c, h, w) as the likelihood sees it, eps (n, latent_dim)
    Units:   nats
    Source:  Kingma & Welling 2014, equation 10, arXiv:1312.6114
    """
    posterior = vae.encode(x)
    logits = vae.logits(posterior.sample(eps))
    return Terms(recon=vae.likelihood.recon(logits, x), kl_per_dimension=posterior.kl_per_dimension())


def mean_loss(terms: Terms, *, beta: float, free_bits: float) -> Tensor:
    """mean(recon) + beta * sum over dimensions of max(free_bits, mean(kl)): the number that a step descends.

    A dimension whose KL lies below free_bits is not pressed further, so that it may stay in use.

    Shapes:  -> scalar
    Units:   nats per picture; free_bits in nats per dimension
    Source:  beta: Higgins et al. 2017, equation 4, openreview.net/forum?id=Sy2fzU9gl
             free bits: Kingma et al. 2016, equation 15, arXiv:1606.04934
    """
    kl_per_dimension = terms.kl_per_dimension.mean(0).clamp(min=free_bits)
    return terms.recon.mean() + beta * kl_per_dimension.sum()


def importance_weighted(vae: VAE, x: Tensor, eps: Tensor) -> ImportanceWeighted:
    """log of the mean of k importance weights p(x, z) / q(z given x), with doubly reparameterised gradients.

    The decoder climbs the bound's own gradient. The encoder is moved through z alone, each draw by the square of its
    normalised weight: the same gradient in expectation, whose noise falls with k once q is near the posterior.

    Shapes:  x (n, c, h, w) as the likelihood sees it, eps (k, n, latent_dim)
    Units:   nats
    Raises:  TypeError if the model is an autoencoder, whose point has no density
    Source:  bound: Burda et al. 2016, equation 8, arXiv:1509.00519
             gradient: Tucker et al. 2019, equation 8, arXiv:1810.04152
    """
    posterior = vae.encode(x)
    if not isinstance(posterior, DiagonalGaussian):
        raise TypeError("importance weights: got an autoencoder, expected a vae")
    z = posterior.sample(eps)
    recon = vae.likelihood.recon(vae.logits(z), x)
    log_weights = standard_log_prob(z) - recon - posterior.detach().log_prob(z)
    normalised = log_weights.detach().softmax(0)
    if z.requires_grad:
        z.register_hook(lambda gradient: gradient * normalised.unsqueeze(-1))  # type: ignore[no-untyped-call]
    return ImportanceWeighted(
        bound=log_weights.detach().logsumexp(0) - math.log(len(eps)),
        loss=-(normalised * log_weights).sum(0).mean(),
        terms=Terms(recon=recon.detach().mean(0), kl_per_dimension=posterior.detach().kl_per_dimension()),
    )
