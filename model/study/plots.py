"""A study's charts: where codes lie, how wide clouds are, what a plane decodes to, and how all that fits N(0, I)."""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor

from model.inference import decode_images
from model.parts import Images, Labels, all_over
from model.report.plots import BLUE, INK, LABEL_COLOURS, STYLE, titled
from model.study.codes import Codes
from model.study.plan import AUTOENCODER, BETA_0, BETA_4, PLAIN, Kind
from model.vae import VAE

Floats = npt.NDArray[np.floating[Any]]
# From where to where a panel reaches, across and up.
Window = tuple[tuple[float, float], tuple[float, float]]

# Autoencoder beside VAE, and below them what the KL term's weight does.
_SQUARE = (AUTOENCODER, PLAIN, BETA_0, BETA_4)
_CLOUDS = (BETA_0, PLAIN, BETA_4)
_DOTS = 3_000
_ELLIPSES = 400
# So that one cloud is seen, and many of them through one another.
_FILLED, _OUTLINED = 0.08, 0.6
# Half the side of the window that shows clouds close up, in units of the codes' spread.
_CLOSE = 0.3
# Of each latent under the prior; how large the picture of a decoded plane may be, and where z is written beside it.
_NORMAL = NormalDist()
_PLANE_PIXELS = 480
_TICKS = (-2, -1, 0, 1, 2)
_MOST_CELLS = 20
# Between two decoded pictures of a plane lies a white line, at least this part of one.
_GAP_SHARE = 16
_LOW, _HIGH = 0.005, 0.995
# Share of codes that a plane may leave out on each side, and what it holds in any case.
_OUTERMOST, _CIRCLES = 0.001, 3.1
_FEWEST_BINS, _MOST_BINS = 12, 60
_LIGHT_BLUE = "#8fb0cf"


@matplotlib.rc_context(STYLE)
def latent_plane(codes: Mapping[Kind, Codes], labels: Labels | None) -> Figure:
    """Where test pictures lie in each plane, coloured by class, over circles of the prior."""
    figure = titled(
        "The latent plane",
        note="mu of test pictures, two latents. Dashed: 1, 2 and 3 standard deviations of N(0, I), in each plane's own"
        " scale.",
        width=11.6,
        height=11,
    )
    for axes, kind in zip(figure.subplots(2, 2).flat, _SQUARE, strict=True):
        shown = all_over(len(codes[kind].mu), most=_DOTS)
        mu = codes[kind].mu[shown].numpy()
        for colour, rows, label in _classes(shown, labels):
            axes.scatter(mu[rows, 0], mu[rows, 1], s=7, alpha=0.7, linewidths=0, color=colour, label=label)
        _circles(axes)
        _frame(axes, kind.title, _around(mu))
    handles, names = figure.axes[0].get_legend_handles_labels()
    if names:
        figure.legend(handles, names, title="label", loc="outside right center", markerscale=2, handletextpad=0.2)
    return figure


@matplotlib.rc_context(STYLE)
def clouds(codes: Mapping[Kind, Codes], labels: Labels | None) -> Figure:
    """Posteriors of test pictures as ellipses: without the KL term, with it, and with four times as much."""
    figure = titled(
        "Clouds",
        note="Each ellipse is q(z given x) of a test picture, with a radius of one sigma. Below: close up,"
        f" {2 * _CLOSE:.2g} times the codes' spread about the code in the middle.",
        width=11.6,
        height=8.6,
    )
    for kind, above, below in zip(_CLOUDS, *figure.subplots(2, 3), strict=True):
        found = codes[kind]
        sigma, mu = found.sigma(), found.mu.numpy()
        assert sigma is not None, "these kinds have clouds"  # noqa: S101
        spread = found.spread().numpy()
        middle = mu[np.square((mu - np.median(mu, 0)) / spread).sum(1).argmin()]
        close = _CLOSE * float(spread.mean())
        for axes, window, said in (
            (above, _around(mu), kind.title),
            (below, _about(middle[0], middle[1], close), f"mean sigma {float(sigma.double().mean()):.4f}"),
        ):
            lows, highs = np.transpose(window)
            is_seen = np.all((lows <= mu + sigma.numpy()) & (mu - sigma.numpy() <= highs), axis=1)
            seen = np.flatnonzero(is_seen)
            drawn = seen[all_over(len(seen), most=_ELLIPSES)]
            _draw_clouds(axes, found, drawn, labels)
            _frame(axes, f"{said}: {len(drawn):,} of {len(seen):,} drawn", window)
        _circles(above)
    return figure


@matplotlib.rc_context(STYLE)
def decoded_plane(models: Mapping[Kind, VAE], codes: Mapping[Kind, Codes] | None) -> Figure:
    """A grid over each plane, decoded: at the prior's quantiles or, with codes, over the square that they lie in."""
    if codes is None:
        title = "The decoded plane: where N(0, I) lies"
        note = "A grid at the quantiles of N(0, I), decoded: every tile stands for as many draws as any other."
    else:
        title = "The decoded plane: where the codes lie"
        note = "A grid over the square between the 0.5 % and 99.5 % quantiles of the test codes, decoded."
    figure = titled(title, note=note, width=11.6, height=11.8)
    for axes, kind in zip(figure.subplots(2, 2).flat, _SQUARE, strict=True):
        middles = _middles(models[kind].config.image_shape)
        if codes is None:
            window = ((0.0, 1.0), (0.0, 1.0))
            across = up = np.array([_NORMAL.inv_cdf(share) for share in middles])
        else:
            (left, bottom), (right, top) = np.quantile(codes[kind].mu.numpy(), (_LOW, _HIGH), axis=0).tolist()
            window = ((left, right), (bottom, top))
            across, up = (low + middles * (high - low) for low, high in window)
        tiles = _decoded_grid(models[kind], across, up)
        axes.imshow(
            tiles,
            cmap="gray",
            vmin=0,
            vmax=255,
            extent=(*window[0], *window[1]),
            aspect="auto",
            interpolation="lanczos",
        )
        _frame(axes, kind.title, window)
        if codes is None:
            places = [_NORMAL.cdf(z) for z in _TICKS]
            axes.set_xticks(places, map(str, _TICKS))
            axes.set_yticks(places, map(str, _TICKS))
    return figure


@matplotlib.rc_context(STYLE)
def aggregate(draws: Mapping[Kind, Tensor]) -> Figure:
    """Densities of each latent over all clouds, and of the length of z, against those of N(0, I).

    Shapes:  draws (n, latent_dim), one from each cloud
    """
    d = next(iter(draws.values())).shape[1]
    figure = titled(
        "All clouds together, against N(0, I)",
        note=f"One draw from the posterior of each test picture. Above: a line for each of {d} latents. Below: length"
        " of z. Dashed: N(0, I). Each panel in its own scale.",
        width=11.6,
        height=6.6,
    )
    panels = figure.subplots(2, len(draws))
    for (kind, z), above, below in zip(draws.items(), *panels, strict=True):
        reach = max(4.0, float(np.quantile(z.abs().numpy(), _HIGH)))
        for dimension in z.T.numpy():
            _density(above, dimension, low=-reach, high=reach, colour=_LIGHT_BLUE, width=1.0)
        line = np.linspace(-reach, reach, 400)
        above.plot(line, np.exp(-(line**2) / 2) / math.sqrt(2 * math.pi), color=INK, linewidth=1.4, linestyle="--")
        above.set_title(kind.title)
        above.set_xlabel("z")
        length = (z.norm(dim=1) / math.sqrt(d)).numpy()
        far = max(2.0, float(np.quantile(length, _HIGH)))
        _density(below, length, low=0.0, high=far, colour=BLUE, width=1.6)
        line = np.linspace(1e-3, far, 400)
        below.plot(line, _length_density(line, d), color=INK, linewidth=1.4, linestyle="--")
        below.set_xlabel(f"|z| / √{d}")
        for axes in (above, below):
            axes.set_yticks([])
            axes.set_ylim(bottom=0)
    return figure


@matplotlib.rc_context(STYLE)
def kl_per_latent(kl: Mapping[Kind, Sequence[float]]) -> Figure:
    """Bars of KL to N(0, I) per latent, the largest first, of each model that has clouds.

    Units:   nats per picture
    """
    figure = titled(
        "KL per latent",
        note="Nats per picture, the largest first, each panel in its own scale. Without the KL term nothing bounds it.",
        width=11.6,
        height=4.2,
    )
    for (kind, values), axes in zip(kl.items(), figure.subplots(1, len(kl)), strict=True):
        axes.bar(np.arange(len(values)), sorted(values, reverse=True), width=0.8, color=BLUE)
        axes.set_title(f"{kind.title}: {sum(values):.1f} nats in all")
        axes.set_xticks([])
        axes.set_xlabel(f"{len(values)} latents")
        axes.grid(axis="y")
    figure.axes[0].set_ylabel("KL, nats per picture")
    return figure


def _classes(rows: npt.NDArray[np.int64], labels: Labels | None) -> list[tuple[str, Any, str | None]]:
    """Of the rows that are shown: colour, which of them, and name of each class, the same whichever are shown; one of
    all where there are no classes, or more than colours.
    """
    kinds = [] if labels is None else np.unique(labels).tolist()
    if labels is None or not 1 < len(kinds) <= len(LABEL_COLOURS):
        return [(BLUE, np.arange(len(rows)), None)]
    return [(colour, labels[rows] == kind, str(kind)) for kind, colour in zip(kinds, LABEL_COLOURS, strict=False)]


def _draw_clouds(axes: Axes, codes: Codes, rows: npt.NDArray[np.intp], labels: Labels | None) -> None:
    sigma = codes.sigma()
    assert sigma is not None, "these kinds have clouds"  # noqa: S101
    mu, diameters = codes.mu.numpy()[rows], 2 * sigma.numpy()[rows]
    for colour, chosen, _ in _classes(rows, labels):
        axes.add_collection(
            EllipseCollection(
                widths=diameters[chosen, 0],
                heights=diameters[chosen, 1],
                angles=np.zeros(len(mu[chosen])),
                units="xy",
                offsets=mu[chosen],
                offset_transform=axes.transData,
                facecolors=to_rgba(colour, _FILLED),
                edgecolors=to_rgba(colour, _OUTLINED),
                linewidths=0.8,
            )
        )
        axes.scatter(mu[chosen, 0], mu[chosen, 1], s=3, linewidths=0, color=colour)


def _circles(axes: Axes) -> None:
    for radius in (1, 2, 3):
        axes.add_patch(Circle((0, 0), radius, fill=False, color=INK, linewidth=0.8, linestyle=(0, (4, 3))))


def _frame(axes: Axes, title: str, window: Window) -> None:
    axes.set_title(title)
    axes.set_xlim(*window[0])
    axes.set_ylim(*window[1])
    axes.set_box_aspect(1)
    axes.set_xlabel("z0")
    axes.set_ylabel("z1")


def _around(mu: Floats) -> Window:
    """The square that holds the circles of the prior and all codes but the furthest."""
    lows, highs = np.quantile(mu, (_OUTERMOST, 1 - _OUTERMOST), axis=0)
    lows, highs = np.minimum(lows, -_CIRCLES), np.maximum(highs, _CIRCLES)
    across, up = (lows + highs) / 2
    return _about(across, up, 0.52 * float((highs - lows).max()))


def _about(across: float, up: float, reach: float) -> Window:
    return (across - reach, across + reach), (up - reach, up + reach)


def _middles(image_shape: tuple[int, int, int]) -> Floats:
    """Of the cells along a side of a plane, which goes from 0 to 1; fewer where pictures are large."""
    cells = max(5, min(_MOST_CELLS, _PLANE_PIXELS // max(image_shape[:2])))
    middles: Floats = (np.arange(cells) + 0.5) / cells
    return middles


def _decoded_grid(vae: VAE, across: Floats, up: Floats) -> Images:
    """One picture of many: (rows · h, columns · w, c), z0 to the right and z1 upwards."""
    height, width, channels = vae.config.image_shape
    cells = len(across)
    z = np.stack(np.meshgrid(across, up[::-1]), axis=-1).reshape(-1, 2)
    tiles = decode_images(vae, torch.from_numpy(z).float()).reshape(cells, cells, height, width, channels)
    gap = max(1, max(height, width) // _GAP_SHARE)
    framed = np.pad(tiles, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    return framed.swapaxes(1, 2).reshape(cells * (height + gap), cells * (width + gap), channels)


def _density(axes: Axes, values: Floats, *, low: float, high: float, colour: str, width: float) -> None:
    # The rule of the square root: as many values in a bin as there are bins.
    bins = max(_FEWEST_BINS, min(_MOST_BINS, round(math.sqrt(len(values)))))
    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    axes.stairs(counts / (len(values) * np.diff(edges)), edges, color=colour, linewidth=width)


def _length_density(length: Floats, d: int) -> Floats:
    """Of |z| / sqrt(d) under N(0, I): that of the chi distribution, scaled."""
    r = length * math.sqrt(d)
    log_density = (d - 1) * np.log(r) - r**2 / 2 - (d / 2 - 1) * math.log(2) - math.lgamma(d / 2)
    density: Floats = math.sqrt(d) * np.exp(log_density)
    return density
