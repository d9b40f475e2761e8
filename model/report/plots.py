"""Charts of a run: what its latents hold, and how it learnt; drawn without a display or any global state."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from model.evaluation import ACTIVE_VARIANCE

BLUE, ORANGE, FAINT, GREY, INK = "#2f5d8a", "#c8642b", "#b9bec4", "#6b6b6b", "#222222"
_TITLE_SIZE, _NOTE_SIZE = 12.2, 9.4
_MARGIN_INCHES, _NOTE_INCHES, _HEAD_INCHES = 0.2, 0.44, 0.7
# Tableau's ten; more labels than that could not be told apart.
LABEL_COLOURS = [
    f"tab:{name}" for name in ("blue", "orange", "green", "red", "purple", "brown", "pink", "gray", "olive", "cyan")
]
_DOTS_PER_INCH = 100
# Any, as the names of these settings are a type of matplotlib's since 3.11 and text before.
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8a8f94",
    "axes.linewidth": 0.8,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#e4e6e8",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "figure.facecolor": "white",
}

# Epochs and values.
Line = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
# Up to this many bars, each has its name below it.
_MOST_NAMED_BARS, _MOST_UPRIGHT_BARS = 40, 20
# Bars of two or three latents are no wider than those of eight.
_FEWEST_PLACES = 8
_MOST_MARKERS = 60


def to_png(figure: Figure) -> bytes:
    """The chart as a file."""
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return file.getvalue()


@matplotlib.rc_context(STYLE)
def kl_spectrum(kl: npt.NDArray[np.float64], *, variance: npt.NDArray[np.floating[Any]]) -> Figure:
    """Bars of KL per latent dimension, the largest first; idle dimensions are grey.

    Shapes:  kl, variance of mu (latent_dim,)
    Units:   kl in nats
    Source:  active units: Burda et al. 2016, section 5.3, arXiv:1509.00519
    """
    order = np.argsort(-kl, kind="stable")
    is_active = variance[order] > ACTIVE_VARIANCE
    figure = titled(
        "KL per latent",
        note=f"{kl.sum():.2f} nats in all. {is_active.sum():,} of {len(kl):,} latents are active: their mu has a"
        f" variance above {ACTIVE_VARIANCE} over the test pictures.",
        width=9,
        height=4.2,
    )
    axes = figure.add_subplot()
    places = np.arange(len(kl))
    axes.bar(places[is_active], kl[order][is_active], width=0.8, color=BLUE, label="active")
    if not is_active.all():
        axes.bar(places[~is_active], kl[order][~is_active], width=0.8, color=FAINT, label="idle")
        axes.legend(loc="upper right")
    axes.set_ylabel("KL, nats per picture")
    axes.grid(axis="y")
    axes.set_xlim(-0.6, max(len(kl), _FEWEST_PLACES) - 0.4)
    if len(kl) <= _MOST_NAMED_BARS:
        axes.set_xticks(places, [f"z{dim}" for dim in order], rotation=0 if len(kl) <= _MOST_UPRIGHT_BARS else 90)
        axes.tick_params(axis="x", length=0)
    else:
        axes.set_xlabel("latents, the one with most KL first")
    return figure


@matplotlib.rc_context(STYLE)
def posterior(
    mu: npt.NDArray[np.float32], *, dims: tuple[int, int], labels: npt.NDArray[np.int64] | None, has_prior: bool
) -> Figure:
    """Where pictures lie in two latent dimensions, coloured by label if there are few, over circles of the prior.

    Shapes:  mu (n, latent_dim); labels (n,)
    """
    circles = " Circles: 1, 2 and 3 standard deviations of the prior." if has_prior else ""
    figure = titled(
        "Test pictures in latent space", note=f"mu of {len(mu):,} test pictures.{circles}", width=7, height=6.6
    )
    axes = figure.add_subplot()
    across, up = mu[:, dims[0]], mu[:, dims[1]]
    kinds = [] if labels is None else np.unique(labels).tolist()
    if labels is not None and 1 < len(kinds) <= len(LABEL_COLOURS):
        for kind, colour in zip(kinds, LABEL_COLOURS, strict=False):
            chosen = labels == kind
            axes.scatter(across[chosen], up[chosen], s=9, alpha=0.75, linewidths=0, color=colour, label=str(kind))
        axes.legend(title="label", loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2, handletextpad=0.2)
    else:
        axes.scatter(across, up, s=9, alpha=0.6, linewidths=0, color=BLUE)
    if has_prior:
        for radius in (1, 2, 3):
            axes.add_patch(Circle((0, 0), radius, fill=False, color=INK, linewidth=0.8, linestyle=(0, (4, 3))))
    axes.set_xlabel(f"z{dims[0]}")
    axes.set_ylabel(f"z{dims[1]}")
    axes.set_aspect("equal", adjustable="datalim")
    return figure


@matplotlib.rc_context(STYLE)
def curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """How a run learnt: elbo, recon and kl in training and validation, learning rate and beta, over epochs.

    An autoencoder has recon alone. A resumed run may have written a step twice; the later line counts.
    """
    records = [*{record["step"]: record for record in history}.values()]
    records.sort(key=lambda record: record["step"])
    steps = records[-1]["step"]
    terms = {name: _terms(records, name) for name in ("elbo", "recon", "kl")}
    terms = {name: lines for name, lines in terms.items() if any(len(epochs) for epochs, _ in lines.values())}
    rows = math.ceil((len(terms) + 1) / 2)
    figure = titled(
        "Training curves",
        note=f"{steps:,} steps. What came before the first tenth of them does not stretch an axis.",
        width=11,
        height=0.8 + 3.3 * rows,
    )
    panels = figure.subplots(rows, 2, sharex=True, squeeze=False)
    titles = {"elbo": "elbo (higher is better)", "recon": "recon (lower is better)", "kl": "kl"}
    for axes, (name, lines) in zip(panels.flat, terms.items(), strict=False):
        _draw_lines(axes, lines)
        axes.set_title(titles[name])
        axes.set_ylabel("nats per picture")
    _draw_schedule(panels[-1, -1], records)
    for axes in panels[-1]:
        axes.set_xlabel("epochs")
    return figure


def _terms(records: Sequence[Mapping[str, Any]], name: str) -> dict[str, Line]:
    """The lines of one panel."""
    lines = {"training": _line(records, name), "validation": _line(records, name, part="validation")}
    if name != "elbo":
        return lines
    bounds = {"training": _line(records, "bound"), "validation": _line(records, "bound", part="validation")}
    return lines | {f"importance-weighted bound, {part}": line for part, line in bounds.items()}


def titled(title: str, *, note: str, width: float, height: float) -> Figure:
    """A title over a grey line, where the sheets of pictures have them, and room for axes below; in inches."""
    figure = Figure(figsize=(width, height))
    top = _HEAD_INCHES + _MARGIN_INCHES
    rect = (_MARGIN_INCHES / width, _MARGIN_INCHES / height, 1 - 2 * _MARGIN_INCHES / width, 1 - top / height)
    figure.set_layout_engine("constrained", rect=rect)
    left = _MARGIN_INCHES / width
    figure.text(left, 1 - _MARGIN_INCHES / height, title, va="top", weight="bold", size=_TITLE_SIZE)
    figure.text(left, 1 - _NOTE_INCHES / height, note, va="top", color=GREY, size=_NOTE_SIZE)
    return figure


def _line(records: Sequence[Mapping[str, Any]], name: str, *, part: str | None = None) -> Line:
    """Epochs and values, where there is a finite one."""
    points = [(record["epoch"], (record if part is None else record.get(part) or {}).get(name)) for record in records]
    found = np.array([point for point in points if point[1] is not None and np.isfinite(point[1])], np.float64)
    epochs, values = found.reshape(-1, 2).T
    return epochs, values


def _draw_lines(axes: Axes, lines: Mapping[str, Line]) -> None:
    for label, (epochs, values) in lines.items():
        if len(epochs):
            colour = ORANGE if "validation" in label else BLUE
            style = "--" if "bound" in label else "-"
            marker = "o" if colour == ORANGE and len(epochs) <= _MOST_MARKERS else ""
            axes.plot(epochs, values, style, color=colour, linewidth=1.4, marker=marker, markersize=3.5, label=label)
    axes.grid(axis="y")
    _frame(axes, [*lines.values()])
    if len(axes.lines):
        axes.legend(loc="best")


def _frame(axes: Axes, lines: Sequence[Line]) -> None:
    """Limits that show what came after the first tenth of a run, and a note of how much lies beyond them."""
    epochs, values = (np.concatenate(parts) for parts in zip(*lines, strict=True))
    if not len(epochs):
        return
    settled = values[epochs >= epochs.max() / 10]
    low, high = np.quantile(settled, (0.01, 0.99))
    room = 0.15 * (high - low) or 1.0
    low, high = low - room, high + room
    axes.set_ylim(low, high)
    beyond = int(((values < low) | (values > high)).sum())
    if beyond:
        text = f"{beyond:,} of {len(values):,} points lie outside"
        axes.annotate(
            text, (1, 1.02), xycoords="axes fraction", ha="right", va="bottom", color=GREY, fontsize=_NOTE_SIZE
        )


def _draw_schedule(axes: Axes, records: Sequence[Mapping[str, Any]]) -> None:
    _draw_setting(axes, _line(records, "learning_rate"), colour=BLUE, text="learning rate")
    beta = _line(records, "beta")
    if len(beta[0]):
        right = axes.twinx()
        _draw_setting(right, beta, colour=ORANGE, text="beta, weight of kl")
        right.spines["right"].set_visible(True)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3), useMathText=True)
    axes.set_title("schedule")


def _draw_setting(axes: Axes, line: Line, *, colour: str, text: str) -> None:
    epochs, values = line
    axes.plot(epochs, values, color=colour, linewidth=1.6)
    axes.set_ylabel(text, color=colour)
    axes.tick_params(axis="y", colors=colour)
    axes.set_ylim(0, 1.08 * max(values, default=0) or 1)
