"""The numbers of one run of a study, on test pictures: every run with the same pictures, pairs and draws."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.aggregate import discrepancy_to_prior
from model.coverage import NEAREST, balls
from model.data import Dataset
from model.inference import decode, decoded_parts, pixel_parts
from model.parts import Images, Labels, all_over
from model.pixels import pixels
from model.prior import FittedPrior
from model.study import codes as latent
from model.study.classifier import Classifier, Seen
from model.study.codes import Codes
from model.study.paths import Smoothness, linear, smoothness, spherical
from model.study.plan import PLANE
from model.study.quantities import standard_error_of
from model.vae import VAE

# Pictures on either side of a comparison, and pairs of them with a midpoint between.
REALISTIC = 5_000
# Paths, and places on each.
PATHS, PLACES = 200, 21
# Of which so many are in memory: large pictures are many numbers.
_PATHS_AT_ONCE = 20
# Pictures whose codes are moved, and how far: this share of the spread of all codes.
MOVED, MOVE = 2_000, 0.05
# Training pictures whose codes a Gaussian is fitted to.
_FITTED = 10_000
# Test codes that are counted on the plane and compared with their neighbours.
CODES = 10_000

Found = dict[str, float | None]


def measure(vae: VAE, *, metrics: Mapping[str, Any], dataset: Dataset, classifier: Classifier | None) -> Found:
    """Every quantity of a model, and its standard error where that is known; what needs labels is None without a
    classifier.

    `metrics` are those of its run, of the same test pictures.
    """
    test = latent.codes_of(vae, dataset.test)
    counted = all_over(len(test.mu), most=CODES)
    sigma = test.sigma()
    found: Found = {
        "rmse": math.sqrt(metrics["mse"]),
        **{name: metrics[name] for name in ("recon", "kl")},
        # The variance that makes a unit active is one in units of the prior, which points do not know.
        "active_units": None if sigma is None else metrics["active_units"],
        "sigma": None if sigma is None else float(sigma.double().mean()),
        "width": latent.width(test),
        **_mmd(test.draw(_generator())),
        "moments": latent.moment_distance(test),
        **_plane(test.mu[counted]),
        **_agreement(test.mu[counted], _labels(dataset, counted)),
        **_moves(vae, test),
        **_paths(lambda z: decode(vae, z), *_chosen(test.mu, PATHS), classifier=classifier),
    }
    rows, others = _apart(len(dataset.test))
    if classifier is None or len(rows) <= NEAREST:
        return found
    fitted = fitted_gaussian(vae, dataset)
    real = classifier.look(pixel_parts(dataset.test[rows]))
    first, last = test.mu[others], test.mu[np.roll(others, -1)]
    half = torch.tensor([0.5])
    for prefix, z in {
        "standard": torch.randn(len(first), vae.config.latent_dim, generator=_generator()),
        "fitted": fitted.sample(len(first), generator=_generator()),
        "linear": linear(first, last, half)[:, 0],
        "spherical": spherical(first, last, half)[:, 0],
    }.items():
        found |= _realism(prefix, classifier.look(decoded_parts(vae, z)), real=real)
    return found


def fitted_gaussian(vae: VAE, dataset: Dataset) -> FittedPrior:
    """The Gaussian with the mean and covariance of the codes of training pictures."""
    return latent.fitted_gaussian(latent.codes_of(vae, _some(dataset.train, _FITTED)))


def reference(dataset: Dataset, *, latent_dim: int, classifier: Classifier | None) -> Found:
    """What real pictures have in place of samples, a cross-fade of pixels in place of paths, and N(0, I) of codes."""
    counted = all_over(len(dataset.test), most=CODES)
    test = dataset.test[counted]
    standard = torch.randn(len(test), latent_dim, generator=_generator())
    first, last = _pairs(len(test), PATHS)
    shape = (-1, *pixels(test[:1]).shape[1:])
    found: Found = {
        **_mmd(standard),
        "moments": latent.moment_distance(Codes(mu=standard, logvar=None)),
        "plane_share": latent.expected_plane_share(len(standard)) if latent_dim == PLANE else None,
        "plane_overlap": latent.plane_overlap(standard) if latent_dim == PLANE else None,
        **_agreement(torch.from_numpy(test).flatten(1), _labels(dataset, counted)),
        **_paths(
            lambda rows: rows.reshape(shape),
            pixels(test[first]).flatten(1),
            pixels(test[last]).flatten(1),
            classifier=classifier,
        ),
    }
    rows, others = _apart(len(dataset.test))
    if classifier is None or len(rows) <= NEAREST:
        return found
    real = classifier.look(pixel_parts(dataset.test[rows]))
    other = classifier.look(pixel_parts(_some(dataset.train, len(rows))))
    samples = _realism("standard", other, real=real) | _mean("standard_confidence", real.confidence)
    found |= samples | {name.replace("standard_", "fitted_", 1): value for name, value in samples.items()}
    sides = zip(pixel_parts(dataset.test[others]), pixel_parts(dataset.test[np.roll(others, -1)]), strict=True)
    return found | _realism("linear", classifier.look((above + below) / 2 for above, below in sides), real=real)


def _mean(name: str, values: Tensor) -> Found:
    """The mean of what was found for each of n, a share where these are 0 and 1, and its standard error."""
    values = values.double()
    error = float(values.std(correction=0)) / math.sqrt(len(values))
    return {name: float(values.mean()), standard_error_of(name): error}


def _realism(prefix: str, seen: Seen, *, real: Seen) -> Found:
    found = balls(seen.features, real.features)
    return {
        **_mean(f"{prefix}_density", found.held / NEAREST),
        **_mean(f"{prefix}_coverage", found.covered),
        **_mean(f"{prefix}_confidence", seen.confidence),
    }


def _mmd(z: Tensor) -> Found:
    if len(z) < 2:
        return {"mmd": None}
    found = discrepancy_to_prior(z, _generator(1))
    return {"mmd": found.mmd, standard_error_of("mmd"): found.standard_error}


def _plane(mu: Tensor) -> Found:
    if mu.shape[1] != PLANE:
        return {"plane_share": None, "plane_overlap": None}
    share = latent.plane_share(mu)
    # At most: of cells that are not all as likely to be hit, the number varies less than binomially.
    error = math.sqrt(share * (1 - share) / latent.CELLS**2)
    return {"plane_share": share, standard_error_of("plane_share"): error, "plane_overlap": latent.plane_overlap(mu)}


def _paths(decoded: Callable[[Tensor], Tensor], first: Tensor, last: Tensor, *, classifier: Classifier | None) -> Found:
    """How evenly pictures change along straight lines from each row of the one to that of the other."""
    along: dict[str, list[Smoothness]] = {"pixel": [], "feature": []}
    chunks = (torch.split(rows, _PATHS_AT_ONCE) for rows in (first, last))
    for begin, end in zip(*chunks, strict=True):
        paths = linear(begin, end, torch.linspace(0, 1, PLACES))
        x = decoded(paths.flatten(0, 1))
        along["pixel"].append(smoothness(x.reshape(*paths.shape[:2], -1)))
        if classifier is not None:
            features = classifier.look(torch.split(x, PLACES)).features
            along["feature"].append(smoothness(features.reshape(*paths.shape[:2], -1)))
    found: Found = {}
    for name, parts in along.items():
        for quantity in ("unevenness", "length"):
            key, values = f"{name}_{quantity}", [getattr(part, quantity) for part in parts]
            found |= _mean(key, torch.cat(values)) if values else {key: None}
    return found


def _moves(vae: VAE, test: Codes) -> Found:
    """How far a decoded picture moves when z does."""
    rows = all_over(len(test.mu), most=MOVED)
    mu = test.mu[rows]
    eps = torch.randn(mu.shape, generator=_generator())

    def moved(name: str, step: Tensor) -> Found:
        changes = zip(decoded_parts(vae, mu), decoded_parts(vae, mu + step * eps), strict=True)
        squares = torch.cat([(after - before).double().square().flatten(1).mean(1) for before, after in changes])
        root = math.sqrt(squares.mean())
        # Of a root, to first order: that of what is under it over twice the root.
        error = float(squares.std(correction=0)) / math.sqrt(len(squares)) / (2 * root) if root > 0 else 0.0
        return {name: root, standard_error_of(name): error}

    sigma = test.sigma()
    by_sigma: Found = {"move_sigma": None} if sigma is None else moved("move_sigma", sigma[rows])
    return by_sigma | moved("move_spread", MOVE * test.spread())


def _agreement(rows: Tensor, labels: Labels | None) -> Found:
    if labels is None or len(rows) < 2:
        return {"label_agreement": None}
    share = latent.label_agreement(rows, torch.from_numpy(labels))
    error = math.sqrt(share * (1 - share) / len(rows))
    return {"label_agreement": share, standard_error_of("label_agreement"): error}


def _labels(dataset: Dataset, rows: npt.NDArray[np.int64]) -> Labels | None:
    return None if dataset.test_labels is None else dataset.test_labels[rows]


def _apart(n_rows: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows drawn by lot that count as real, and as many others, whose midpoints lie among them: what lies between two
    pictures is near those two.
    """
    n = min(REALISTIC, n_rows // 2)
    order = torch.randperm(n_rows, generator=_generator()).numpy()
    return np.sort(order[:n]), order[n : 2 * n]


def _pairs(n_rows: int, n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The first n of pairs of rows drawn by lot: each row once as a first, once as a last."""
    order = torch.randperm(n_rows, generator=_generator())
    return order[:n].numpy(), order.roll(-1)[:n].numpy()


def _chosen(rows: Tensor, n: int) -> tuple[Tensor, Tensor]:
    first, last = _pairs(len(rows), n)
    return rows[first], rows[last]


def _some(images: Images, n: int) -> Images:
    """At most n pictures, drawn by lot, as the pictures of a part may be sorted by class."""
    rows = torch.randperm(len(images), generator=_generator())[:n].sort().values.numpy()
    return np.take(images, rows, axis=0)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
