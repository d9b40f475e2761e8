"""How good pictures drawn from a prior are: where they lie among real ones, if they copy any, which prior is best."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model import prior
from model.coverage import NEAREST, CopyCheck, check_copies, coverage
from model.errors import BadSetting
from model.inference import decode_images, encode
from model.parts import Images
from model.prior import FittedPrior
from model.report.pictures import Nearest
from model.vae import VAE

# Of test pictures, those that lie nearest to a training picture; a sample that is nearer than they may be its copy.
_NEAREST_SHARE = 0.01
# Samples looked up among the training pictures, and test pictures beside them.
COPY_CHECKED = 1000


@dataclass(frozen=True, eq=False)
class Generation:
    """What was found: figures for `metrics.json`, samples beside their nearest training pictures, and a fitted prior.

    `fitted` is None where none could be fitted, or none was worth keeping.
    """

    metrics: dict[str, Any]
    nearest: Nearest
    fitted: FittedPrior | None


@torch.no_grad()
def generate(vae: VAE, *, training: Images, test: Images, seed: int) -> Generation | None:
    """Density, coverage and copies of pictures drawn from N(0, I) and from a prior fitted to the training latents.

    The fitted prior is kept as `prior.Comparison` says. An autoencoder was never asked
    to fill N(0, I), which is measured beside it all the same. It keeps the fitted prior in any case, as it has no
    other, and its copies are looked for among samples of that, the only ones that are ever served. None where there are
    too few test pictures to lie among.

    Shapes:  training, test (n, h, w, c)
    Source:  Naeem et al. 2020, arXiv:2002.09797; Ghosh et al. 2020, section 4, arXiv:1903.12436
    """
    if len(test) <= NEAREST:
        return None
    generator = torch.Generator().manual_seed(seed)
    # Chosen by lot, as the pictures of a test part may be sorted by class.
    real = test[torch.randperm(len(test), generator=generator)[: prior.PICTURES_MAX].numpy()]
    metrics: dict[str, Any] = {"protocol": _protocol(real, training, seed=seed), "fitted": None, "rejected": None}
    fitted, name = None, "standard"
    try:
        candidate = prior.fit(_draws(vae, training, generator), seed=seed)
    except BadSetting as error:
        metrics["not_fitted"] = str(error)
        z = torch.randn(len(real), vae.config.latent_dim, generator=generator)
        standard = coverage(decode_images(vae, z), real)
    else:
        found = prior.compare(candidate, decode=lambda z: decode_images(vae, z), held_out=real, generator=generator)
        standard = found.standard
        keep = found.keep or vae.config.family == "autoencoder"
        fitted = candidate if keep else None
        metrics["fitted" if keep else "rejected"] = asdict(found.fitted) | {"components": len(candidate.weights)}
    metrics["standard"] = asdict(standard)
    if fitted is not None and vae.config.family == "autoencoder":
        name, shown = "fitted", fitted.sample(COPY_CHECKED, generator=generator)
    else:
        shown = torch.randn(COPY_CHECKED, vae.config.latent_dim, generator=generator)
    samples = decode_images(vae, shown)
    copies = check_copies(samples, held_out=real[:COPY_CHECKED], training=training)
    metrics[name] |= {
        "neighbour_distance": float(np.median(copies.samples.distances)),
        "test_neighbour_distance": float(np.median(copies.held_out.distances)),
        "near_training": _near_training(copies),
    }
    nearest = Nearest(samples, training[copies.samples.indices], copies.samples.distances)
    return Generation(metrics=metrics, nearest=nearest, fitted=fitted)


def _near_training(copies: CopyCheck) -> float | None:
    """The share of samples that lie nearer to a training picture than all but a hundredth of the test pictures do; None
    where those are too few to tell, or so many of them lie in the training part too.
    """
    usual = copies.held_out.distances
    near = float(np.quantile(usual, _NEAREST_SHARE))
    return float((copies.samples.distances < near).mean()) if len(usual) >= 1 / _NEAREST_SHARE and near > 0 else None


def _draws(vae: VAE, training: Images, generator: torch.Generator) -> Tensor:
    """A draw from the posterior of each of as many training pictures as a prior is fitted to: (n, latent_dim)."""
    chosen = torch.randperm(len(training), generator=generator)[: prior.DRAWS_MAX].sort().values
    posterior = encode(vae, training, chosen.numpy())
    return posterior.sample(torch.randn(posterior.mu.shape, generator=generator))


def _protocol(real: Images, training: Images, *, seed: int) -> dict[str, Any]:
    return {
        "samples": len(real),
        "test_images": len(real),
        "training_images": len(training),
        "copy_checked": COPY_CHECKED,
        "fitted_prior_chosen_on": "the same test pictures",
        "distance": "Euclidean, on pixels from 0 to 1",
        "pictures": "means of p(x given z)",
        "seed": seed,
    }
