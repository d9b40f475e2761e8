"""What a person looks at before a model is served: reconstructions, samples, paths through latents, and charts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.files import write_whole
from model.inference import decode_images, encode
from model.parts import Images, all_over
from model.pixels import pixels, to_image
from model.report import sheets
from model.report.sheets import Sheet, grid, tile_size
from model.vae import VAE

NAMES = (
    "reconstructions",
    "samples",
    "samples_fitted",
    "neighbours",
    "interpolations",
    "traversals",
    "kl_spectrum",
    "posterior",
    "curves",
)
"""Every picture that a run may have, in the order in which a card shows them."""

_PAIRS = 3
_SAMPLE_ROWS = 8
_PATHS = 8
_DIMS = 16
_SEED = 0
# Enough to rank latents by and to see where they lie; more dots would hide each other.
_MEANS = 2000
# Pictures wider than this on a sheet get fewer steps of a path, so that they need not be made smaller by much.
_SMALL_PIXELS = 100

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Nearest:
    """Prior samples, each with the training picture nearest to it.

    Shapes:  samples, training (n, h, w, c) uint8; distances (n,)
    """

    samples: Images
    training: Images
    distances: Floats


def write_all(
    folder: Path,
    vae: VAE,
    images: Images,
    *,
    metrics: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]] = (),
    labels: Labels | None = None,
    fitted_z: Tensor | None = None,
    nearest: Nearest | None = None,
) -> list[str]:
    """Names of the pictures now in a folder, as NAME.png; those that lack their input are left out.

    Shapes:  images (n, h, w, c), test pictures; labels (n,); fitted_z (m, latent_dim), draws from a fitted prior
    """
    is_vae = vae.config.family == "vae"
    kl = np.array(metrics["kl_per_dimension"]) if is_vae and metrics.get("kl_per_dimension") else None
    rows = all_over(len(images), most=_MEANS)
    mu = encode(vae, images[rows]).mu
    drawn = {
        "reconstructions": reconstructions(vae, images),
        "samples": samples(vae) if is_vae else None,
        "samples_fitted": None if fitted_z is None else fitted_samples(vae, fitted_z),
        "neighbours": None if nearest is None else neighbours(nearest),
        "interpolations": interpolations(vae, images),
        "traversals": traversals(vae, mu, kl=kl),
    }
    files = {name: sheets.to_png(sheet) for name, sheet in drawn.items() if sheet is not None}
    files |= _charts(
        mu.numpy(),
        kl=kl,
        variance=np.array(metrics["mu"]["variance"]) if metrics.get("mu") else mu.numpy().var(axis=0, dtype=np.float64),
        history=history,
        labels=None if labels is None else labels[rows],
    )
    for name in NAMES:
        path = folder / f"{name}.png"
        if name in files:
            write_whole(path, files[name])
        else:
            # An earlier evaluation may have drawn it, from figures that hold no more.
            path.unlink(missing_ok=True)
    return [name for name in NAMES if name in files]


def _charts(
    mu: npt.NDArray[np.float32],
    *,
    kl: Floats | None,
    variance: Floats,
    history: Sequence[Mapping[str, Any]],
    labels: Labels | None,
) -> dict[str, bytes]:
    from model.report import plots  # matplotlib takes long to import, and most commands draw nothing

    charts = {}
    if kl is not None:
        charts["kl_spectrum"] = plots.kl_spectrum(kl, variance=variance)
    if mu.shape[1] > 1:
        first, second, *_ = ranked(variance if kl is None else kl)
        charts["posterior"] = plots.posterior(mu, dims=(first, second), labels=labels, has_prior=kl is not None)
    if history:
        charts["curves"] = plots.curves(history)
    return {name: plots.to_png(figure) for name, figure in charts.items()}


def reconstructions(vae: VAE, images: Images) -> Sheet:
    """Test pictures, their reconstructions below them.

    Shapes:  images (n, h, w, c)
    """
    columns, pairs = grid(vae.config.image_shape, n=len(images), most_rows=_PAIRS, tall=2)
    chosen = _spread(images, columns * pairs)
    seen = ", as the model sees them, white from 128 of 255 up" if vae.config.likelihood == "bernoulli" else ""
    return Sheet(
        title="Reconstructions",
        note=f"{columns * pairs:,} of {len(images):,} test pictures, evenly spaced{seen}."
        " Below each, the decoder's picture of its mu.",
        tiles=_pairs(_as_seen(vae, chosen), decode_images(vae, encode(vae, chosen).mu), columns=columns),
        row_labels=("input", "output") * pairs,
        group=2,
    )


def samples(vae: VAE) -> Sheet:
    """What latents from the prior decode to, the same latents every time."""
    columns, rows = grid(vae.config.image_shape, n=1000, most_rows=_SAMPLE_ROWS)
    z = torch.randn(columns * rows, vae.config.latent_dim, generator=torch.Generator().manual_seed(_SEED))
    return Sheet(
        title="Prior samples",
        note=f"{len(z):,} draws of z from N(0, I), decoded. None is chosen.",
        tiles=_rows(decode_images(vae, z), columns=columns),
    )


def fitted_samples(vae: VAE, z: Tensor) -> Sheet:
    """What latents from a fitted prior decode to, as many as fit.

    Shapes:  z (n, latent_dim)
    """
    columns, rows = grid(vae.config.image_shape, n=len(z), most_rows=_SAMPLE_ROWS)
    return Sheet(
        title="Samples of the fitted prior",
        note=f"{columns * rows:,} draws of z from the density fitted to the training pictures' latents, decoded."
        " None is chosen.",
        tiles=_rows(decode_images(vae, z[: columns * rows]), columns=columns),
    )


def neighbours(found: Nearest) -> Sheet:
    """Samples over the training pictures nearest to them, the nearest pairs first."""
    height, width, channels = found.samples.shape[1:]
    n = len(found.samples)
    columns, pairs = grid((height, width, channels), n=n, most_rows=_PAIRS, tall=2)
    order = np.argsort(found.distances, kind="stable")[: columns * pairs]
    captions = [f"{distance:#.3g}".rstrip(".") for distance in found.distances[order]]
    return Sheet(
        title="Nearest training pictures",
        note=f"Samples over the training picture nearest to each: {len(order):,} of {n:,}, the nearest pairs"
        f" first. Below each pair its distance; the median of all is {np.median(found.distances):.3g}.",
        tiles=_pairs(found.samples[order], found.training[order], columns=columns),
        row_labels=("sample", "training") * pairs,
        captions=[captions[start : start + columns] for start in range(0, len(captions), columns)],
        group=2,
    )


def interpolations(vae: VAE, images: Images) -> Sheet:
    """One row per pair of test pictures: the straight line between their means, decoded, between the two.

    Shapes:  images (n, h, w, c)
    """
    steps = 11 if _is_small(vae) else 5
    paths = max(1, min(_PATHS, len(images) // 2))
    chosen = _spread(images, 2 * paths)
    first, last = encode(vae, chosen).mu.chunk(2)
    alpha = torch.linspace(0, 1, steps)
    z = torch.lerp(first[:, None], last[:, None], alpha[:, None])
    path = _rows(decode_images(vae, z.flatten(0, 1)), columns=steps)
    left, right = _as_seen(vae, chosen).reshape(2, paths, 1, *path.shape[2:])
    return Sheet(
        title="Interpolations",
        note="Straight lines z = (1 − α) z₁ + α z₂ between the mu of two test pictures, the inputs at both ends.",
        tiles=np.concatenate([left, path, right], axis=1),
        column_labels=(
            "input",
            *(f"α = {value:.3g}" if value in (0, 1) else f"{value:.3g}" for value in alpha.tolist()),
            "input",
        ),
        columns_apart=(1, steps + 1),
    )


def traversals(vae: VAE, mu: Tensor, *, kl: Floats | None) -> Sheet:
    """One row per latent dimension, the most active first: that one moves, the others stay.

    Where there is no KL, dimensions rank by the variance of mu and move by its standard deviation.

    Shapes:  mu (n, latent_dim), of test pictures; kl (latent_dim,)
    Units:   kl in nats
    """
    weights = mu.var(0, correction=0).double().numpy() if kl is None else kl
    dims = ranked(weights)[: _DIMS if _is_small(vae) else _DIMS // 2]
    offsets = torch.linspace(-3, 3, 13 if _is_small(vae) else 7)
    # The test picture in the middle of all: what moves can be told from a picture, less so from a blend of all.
    base = mu[(mu - mu.mean(0)).square().sum(1).argmin()]
    z = base.repeat(len(dims), len(offsets), 1)
    for row, dim in enumerate(dims):
        z[row, :, dim] = offsets if kl is not None else mu[:, dim].mean() + offsets * mu[:, dim].std(correction=0)
    moved = "from −3 to 3" if kl is not None else "by up to 3 standard deviations from its mean"
    left_out = f" The {len(weights) - len(dims):,} less active ones are left out." if len(weights) > len(dims) else ""
    return Sheet(
        title="Traversals",
        note=f"One latent a row, moved {moved}; the others stay where the test picture nearest to the mean of all has"
        f" them. The most active latent first.{left_out}",
        tiles=_rows(decode_images(vae, z.flatten(0, 1)), columns=len(offsets)),
        row_labels=[f"z{dim} · {weights[dim]:.2f} {'variance' if kl is None else 'nats'}" for dim in dims],
        column_labels=[f"{value:.3g}".replace("-", "−") for value in offsets.tolist()],
    )


def ranked(weights: npt.NDArray[np.floating[Any]]) -> list[int]:
    """Indices from the largest weight to the smallest; equal ones keep their order."""
    order: list[int] = np.argsort(-weights, kind="stable").tolist()
    return order


def _as_seen(vae: VAE, images: Images) -> Images:
    """Pictures as the encoder sees them, where they are served."""
    return to_image(vae.likelihood.settle(pixels(images))).numpy()


def _is_small(vae: VAE) -> bool:
    return tile_size(vae.config.image_shape)[1] <= _SMALL_PIXELS


def _rows(images: Images, *, columns: int) -> Images:
    return images.reshape(-1, columns, *images.shape[1:])


def _pairs(above: Images, below: Images, *, columns: int) -> Images:
    """Rows in turn: some of the one, and below them as many of the other."""
    both = np.stack([above, below]).reshape(2, -1, columns, *above.shape[1:])
    return both.swapaxes(0, 1).reshape(-1, *both.shape[2:])


def _spread(images: Images, n: int) -> Images:
    """n pictures from evenly spaced places, repeated where there are fewer."""
    return images[np.linspace(0, len(images) - 1, n).round().astype(np.int64)]
