"""What a study shows of its four models in pictures of their own: paths, samples, and the strip for a README."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from model.data import Dataset
from model.inference import decode_images
from model.parts import Images
from model.report.sheets import Sheet, grid, tile_size
from model.study import codes as latent
from model.study.numbers import fitted_gaussian
from model.study.paths import linear
from model.study.plan import AUTOENCODER, PLAIN, Kind
from model.vae import VAE

_PAIRS = 4
_ROWS = 2
_SEED = 0
# Places on a path; fewer where pictures are wide.
_PLACES, _FEW_PLACES = 11, 5
_SMALL_PIXELS = 100

Models = Mapping[Kind, VAE]


def interpolations(models: Models, dataset: Dataset) -> Sheet:
    """The straight lines between the same pairs of test pictures, one model a row."""
    first, last = _pairs(dataset, _PAIRS)
    alpha = torch.linspace(0, 1, _places(dataset))
    return Sheet(
        title="Between the same pictures",
        note="Straight lines z = (1 − α) z₁ + α z₂ between the codes of two test pictures, decoded; the inputs at both"
        " ends. The pairs were drawn by lot, those of one class left out.",
        tiles=np.concatenate([_path(models, dataset, pair, alpha) for pair in zip(first, last, strict=True)]),
        row_labels=[kind.title for kind in models] * len(first),
        column_labels=("input", *(_alpha(value) for value in alpha.tolist()), "input"),
        columns_apart=(1, len(alpha) + 1),
        group=len(models),
    )


def strip(models: Models, dataset: Dataset) -> Sheet:
    """One path of autoencoder and VAE, the first of the pairs that `interpolations` shows."""
    (first,), (last,) = _pairs(dataset, 1)
    alpha = torch.linspace(0, 1, _places(dataset))
    return Sheet(
        title="Between two pictures",
        note=f"The straight line between the codes of two test pictures of {dataset.name}, decoded;"
        " the same pair, network and training for both.",
        tiles=_path({kind: models[kind] for kind in (AUTOENCODER, PLAIN)}, dataset, (first, last), alpha),
        row_labels=(AUTOENCODER.title, PLAIN.title),
        column_labels=("input", *(_alpha(value) for value in alpha.tolist()), "input"),
        columns_apart=(1, len(alpha) + 1),
    )


def samples(models: Models) -> Sheet:
    """What the same draws from N(0, I) decode to."""
    return _samples(
        {
            kind: torch.randn(200, vae.config.latent_dim, generator=torch.Generator().manual_seed(_SEED))
            for kind, vae in models.items()
        },
        models,
        title="Samples from N(0, I)",
        note="The same draws of z from N(0, I), decoded by each. None is chosen.",
    )


def fitted_samples(models: Models, dataset: Dataset) -> Sheet:
    """What draws from a Gaussian fitted to each model's codes decode to."""
    return _samples(
        {
            kind: fitted_gaussian(vae, dataset).sample(200, generator=torch.Generator().manual_seed(_SEED))
            for kind, vae in models.items()
        },
        models,
        title="Samples from a fitted Gaussian",
        note="Draws of z from the Gaussian with the mean and covariance of each model's training codes, decoded. None"
        " is chosen.",
    )


def _samples(z: Mapping[Kind, Tensor], models: Models, *, title: str, note: str) -> Sheet:
    image_shape = next(iter(models.values())).config.image_shape
    columns, _ = grid(image_shape, n=100, most_rows=1)
    shown = [decode_images(vae, z[kind][: columns * _ROWS]) for kind, vae in models.items()]
    return Sheet(
        title=title,
        note=note,
        tiles=np.concatenate(shown).reshape(-1, columns, *image_shape),
        row_labels=[label for kind in models for label in (kind.title, *[""] * (_ROWS - 1))],
        group=_ROWS,
    )


def _path(models: Models, dataset: Dataset, pair: tuple[int, int], alpha: Tensor) -> Images:
    """Rows of input, path, input: (models, places + 2, h, w, c)."""
    ends = dataset.test[list(pair)]
    rows = []
    for vae in models.values():
        mu = latent.codes_of(vae, ends).mu
        path = decode_images(vae, linear(mu[:1], mu[1:], alpha)[0])
        rows.append(np.concatenate([ends[:1], path, ends[1:]]))
    return np.stack(rows)


def _pairs(dataset: Dataset, n: int) -> tuple[list[int], list[int]]:
    """Test pictures drawn by lot, two and two, of different classes where there are any."""
    order = np.random.default_rng(_SEED).permutation(len(dataset.test)).tolist()
    labels = dataset.test_labels
    pairs = list(zip(order, order[1:] + order[:1], strict=True))[::2]
    apart = [pair for pair in pairs if labels is None or labels[pair[0]] != labels[pair[1]]] or pairs
    first, last = zip(*apart[:n], strict=True)
    return list(first), list(last)


def _places(dataset: Dataset) -> int:
    return _PLACES if tile_size(dataset.image_shape)[1] <= _SMALL_PIXELS else _FEW_PLACES


def _alpha(value: float) -> str:
    return f"α = {value:.3g}" if value in (0, 1) else f"{value:.3g}"
