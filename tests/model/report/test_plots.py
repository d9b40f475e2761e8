"""Charts: what they draw is what they were given, on axes that can be read."""

import io
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from model.report import plots


def _line(step: int, **values: Any) -> dict[str, Any]:
    usual = {"elbo": -100.0 + step, "recon": 80.0 - step, "kl": 20.0, "bound": None, "beta": 1.0, "learning_rate": 1e-3}
    return {"step": step, "epoch": step / 10, "validation": None, **usual, **values}


def test_bars_fall_from_the_largest_kl_and_idle_latents_are_told_apart() -> None:
    figure = plots.kl_spectrum(np.array([0.5, 2.0, 0.001]), variance=np.array([0.4, 0.9, 0.01]))
    axes = figure.axes[0]
    assert [bar.get_height() for bar in axes.patches] == [2.0, 0.5, 0.001]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["z1", "z0", "z2"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["active", "idle"]
    assert "2 of 3 latents are active" in figure.texts[1].get_text()
    assert "2.50 nats" in figure.texts[1].get_text()


def test_an_explosion_at_the_start_does_not_squash_an_axis() -> None:
    history = [_line(step) for step in range(1, 101)]
    history[0] |= {"elbo": -1e9, "recon": 1e9}
    figure = plots.curves(history)
    low, high = figure.axes[0].get_ylim()
    assert -110 < low < -80
    assert 0 <= high < 30
    assert "of 100 points lie outside" in figure.axes[0].texts[0].get_text()


def test_a_spike_later_on_is_counted_and_does_not_hide_the_rest() -> None:
    figure = plots.curves([_line(step, **({"kl": 1e6} if step == 700 else {})) for step in range(1, 1001)])
    kl = figure.axes[2]
    assert kl.get_ylim()[1] < 100
    assert kl.texts[0].get_text() == "1 of 1,000 points lie outside"


def test_a_step_that_a_resumed_run_wrote_again_counts_once_and_the_later_line_wins() -> None:
    history = [_line(1), _line(2, elbo=7.0), _line(3), _line(2, elbo=5.0), _line(3, elbo=6.0)]
    drawn = plots.curves(history).axes[0].lines[0]
    assert drawn.get_ydata().tolist() == [-99.0, 5.0, 6.0]
    assert drawn.get_xdata().tolist() == [0.1, 0.2, 0.3]


def test_validation_and_the_bound_are_drawn_where_there_are_any_and_what_is_not_finite_is_not() -> None:
    history = [
        _line(1, elbo=float("nan")),
        _line(2, validation={"elbo": -97.0, "recon": 79.0, "kl": 18.0}),
        _line(3, bound=-90.0, validation={"elbo": -98.0, "recon": 79.0, "kl": 19.0, "bound": -91.0}),
    ]
    lines = plots.curves(history).axes[0].lines
    bounds = ["importance-weighted bound, training", "importance-weighted bound, validation"]
    assert [line.get_label() for line in lines] == ["training", "validation", *bounds]
    assert [line.get_ydata().tolist() for line in lines] == [[-98.0, -97.0], [-97.0, -98.0], [-90.0], [-91.0]]


def test_an_autoencoder_has_the_curve_of_its_reconstruction_and_of_the_learning_rate() -> None:
    history = [_line(step, elbo=None, kl=None, beta=None) for step in range(1, 11)]
    figure = plots.curves(history)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["recon (lower is better)", "schedule"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["nats per picture", "learning rate"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["epochs", "epochs"]


@pytest.mark.parametrize(("kinds", "colours"), [(3, 3), (10, 10), (11, 1)])
def test_up_to_ten_labels_have_a_colour_each(kinds: int, colours: int) -> None:
    mu = np.random.default_rng(0).normal(size=(110, 4)).astype(np.float32)
    figure = plots.posterior(mu, dims=(2, 0), labels=np.arange(110) % kinds, has_prior=True)
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("z2", "z0")
    assert len({to_hex(dots.get_facecolor()[0]) for dots in axes.collections}) == colours
    points = np.concatenate([np.asarray(dots.get_offsets()) for dots in axes.collections])
    assert np.allclose(np.sort(points, axis=0), np.sort(mu[:, [2, 0]], axis=0))
    assert [circle.get_radius() for circle in axes.patches] == [1, 2, 3]


def test_a_chart_is_a_png_and_leaves_matplotlib_as_it_was() -> None:
    before = dict(matplotlib.rcParams)
    content = plots.to_png(plots.curves([_line(1)]))
    assert Image.open(io.BytesIO(content)).size == (1100, 740)
    assert dict(matplotlib.rcParams) == before
    assert plots.to_png(plots.curves([_line(1)])) == content
