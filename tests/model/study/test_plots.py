"""A study's charts: what they draw is what the codes are."""

import io

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, PathCollection
from PIL import Image
from scipy import stats

from model.report import plots as charts
from model.study import plots
from model.study.codes import Codes
from model.study.plan import AUTOENCODER, BETA_0, BETA_4, KINDS, PLAIN, Kind
from model.vae import VAE, ModelConfig


@pytest.fixture
def codes() -> dict[Kind, Codes]:
    generator = torch.Generator().manual_seed(0)
    scales = {AUTOENCODER: None, BETA_0: 0.01, PLAIN: 0.3, BETA_4: 0.8}
    found = {}
    for kind in KINDS:
        mu, sigma = torch.randn(30, 2, generator=generator), scales[kind]
        logvar = None if sigma is None else torch.full((30, 2), 2 * np.log(sigma)) + torch.rand(30, 2)
        found[kind] = Codes(mu=mu if sigma else 20 * mu, logvar=logvar)
    return found


def test_the_plane_has_a_dot_for_each_code_in_its_own_scale_over_the_priors_circles(codes: dict[Kind, Codes]) -> None:
    figure = plots.latent_plane(codes, np.arange(30) % 3)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["autoencoder", "VAE", "VAE, beta 0", "VAE, beta 4"]
    for axes, kind in zip(figure.axes, (AUTOENCODER, PLAIN, BETA_0, BETA_4), strict=True):
        dots = np.concatenate([np.asarray(part.get_offsets()) for part in axes.collections])
        np.testing.assert_allclose(np.sort(dots, 0), np.sort(codes[kind].mu.numpy(), 0), rtol=1e-5)
        assert [circle.get_radius() for circle in axes.patches] == [1, 2, 3]
        assert np.ptp(axes.get_xlim()) == pytest.approx(np.ptp(axes.get_ylim()))
        for low, high in (axes.get_xlim(), axes.get_ylim()):
            assert low < -3
            assert high > 3
    assert figure.axes[0].get_xlim()[1] > 20
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0", "1", "2"]


def test_without_labels_the_plane_has_one_colour_and_no_legend(codes: dict[Kind, Codes]) -> None:
    figure = plots.latent_plane(codes, None)
    assert not figure.legends
    assert {len(axes.collections) for axes in figure.axes} == {1}


def test_a_class_has_its_colour_whichever_classes_are_in_view(codes: dict[Kind, Codes]) -> None:
    mu = codes[PLAIN].mu.numpy()
    farthest_first = np.square((mu - np.median(mu, 0)) / mu.std(0)).sum(1).argsort()[::-1]
    labels = np.empty(30, np.int64)
    labels[farthest_first] = np.arange(30) // 10  # so that the first class is out of view close up
    figure = plots.clouds(codes, labels)

    def colours(axes: Axes) -> dict[tuple[float, ...], tuple[float, ...]]:
        dots = [part for part in axes.collections if isinstance(part, PathCollection)]
        return {tuple(at): tuple(part.get_facecolor()[0]) for part in dots for at in np.asarray(part.get_offsets())}

    everywhere, close = colours(figure.axes[1]), colours(figure.axes[4])
    assert 1 <= len({everywhere[at] for at in close}) < len(set(everywhere.values())) == 3
    assert close == {at: everywhere[at] for at in close}


def test_an_ellipse_is_as_wide_as_its_cloud(codes: dict[Kind, Codes]) -> None:
    figure = plots.clouds(codes, None)
    assert [axes.get_title(loc="left") for axes in figure.axes[:3]] == [
        f"{kind.title}: 30 of 30 drawn" for kind in (BETA_0, PLAIN, BETA_4)
    ]
    for axes, kind in zip(figure.axes, (BETA_0, PLAIN, BETA_4), strict=False):
        (ellipses,) = (part for part in axes.collections if isinstance(part, EllipseCollection))
        sigma = codes[kind].sigma()
        assert sigma is not None
        np.testing.assert_allclose(ellipses.get_widths(), 2 * sigma[:, 0], rtol=1e-5)
        np.testing.assert_allclose(ellipses.get_heights(), 2 * sigma[:, 1], rtol=1e-5)
        np.testing.assert_allclose(ellipses.get_offsets(), codes[kind].mu, rtol=1e-5)
    for above, below in zip(figure.axes[:3], figure.axes[3:], strict=True):
        assert np.ptp(below.get_xlim()) < np.ptp(above.get_xlim()) / 2


def test_of_many_clouds_some_are_drawn_and_the_panel_says_so(
    codes: dict[Kind, Codes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "_ELLIPSES", 7)
    figure = plots.clouds(codes, None)
    assert figure.axes[1].get_title(loc="left") == "VAE: 7 of 30 drawn"
    (ellipses,) = (part for part in figure.axes[1].collections if isinstance(part, EllipseCollection))
    assert len(ellipses.get_offsets()) == 7


def test_a_cloud_wider_than_the_close_window_colours_it(codes: dict[Kind, Codes]) -> None:
    """Its outline lies outside; what is seen of it is what it is filled with."""
    wide = Codes(mu=codes[BETA_4].mu, logvar=torch.full((30, 2), 2 * np.log(40.0)))
    figure = plots.clouds({**codes, BETA_4: wide}, None)
    axes = figure.axes[5]
    assert axes.get_title(loc="left") == "mean sigma 40.0000: 30 of 30 drawn"
    (ellipses,) = (part for part in axes.collections if isinstance(part, EllipseCollection))
    assert all(0 < alpha < 0.5 for *_, alpha in ellipses.get_facecolor())


class Corners(torch.nn.Module):
    """A decoder whose pictures are white where z0 is above 0 and z1 above 0.5, and black elsewhere."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        inside = (z[:, 0] > 0) & (z[:, 1] > 0.5)
        return torch.where(inside, 20.0, -20.0).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)


def test_the_decoded_plane_has_z0_to_the_right_and_z1_upwards() -> None:
    vae = VAE(ModelConfig(8, 8, 1, latent_dim=2, features=2)).eval()
    vae.decoder = Corners()
    figure = plots.decoded_plane(dict.fromkeys(KINDS, vae), None)
    for axes in figure.axes:
        (image,) = axes.images
        tiles = np.asarray(image.get_array()).reshape(20, 9, 20, 9)
        assert image.get_extent() == [0, 1, 0, 1]
        is_white = tiles[:, 0, :, 0] == 255
        # 31 % of N(0, 1) lies above 0.5: six rows of twenty.
        assert is_white[:6, 10:].all()
        assert not is_white[6:].any()
        assert not is_white[:, :10].any()
        assert (tiles[:, 8] == 255).all(), "white lines part the pictures"
        assert [text.get_text() for text in axes.get_xticklabels()] == ["-2", "-1", "0", "1", "2"]
        np.testing.assert_allclose(axes.get_xticks(), stats.norm.cdf([-2, -1, 0, 1, 2]))


def test_the_plane_of_the_codes_reaches_as_far_as_they_do(codes: dict[Kind, Codes]) -> None:
    vae = VAE(ModelConfig(8, 8, 3, latent_dim=2, features=2)).eval()
    figure = plots.decoded_plane(dict.fromkeys(KINDS, vae), codes)
    low, high = np.quantile(codes[AUTOENCODER].mu.numpy()[:, 0], (0.005, 0.995))
    assert figure.axes[0].get_xlim() == pytest.approx((low, high), rel=1e-5)


def test_densities_have_area_1_beside_that_of_the_prior() -> None:
    draws = {kind: torch.randn(900, 3, generator=torch.Generator().manual_seed(0)) for kind in KINDS}
    figure = plots.aggregate(draws)
    for axes in figure.axes:
        for stairs in axes.patches:
            values, edges, _ = stairs.get_data()
            assert float((values * np.diff(edges)).sum()) == pytest.approx(1, abs=0.02)
        across, up = axes.lines[0].get_data()
        assert float(np.trapezoid(up, across)) == pytest.approx(1, abs=0.02)
    assert [len(axes.patches) for axes in figure.axes] == [3] * 4 + [1] * 4


def test_bars_of_kl_fall_from_the_largest() -> None:
    figure = plots.kl_per_latent({BETA_0: [10.0, 30.0], PLAIN: [0.5, 0.25]})
    assert [bar.get_height() for bar in figure.axes[0].patches] == [30.0, 10.0]
    assert figure.axes[1].get_title(loc="left") == "VAE: 0.8 nats in all"


def test_charts_are_no_wider_than_a_page_and_neither_is_what_they_say(codes: dict[Kind, Codes]) -> None:
    draws = {kind: torch.randn(50, 16, generator=torch.Generator().manual_seed(0)) for kind in KINDS}
    for figure in (plots.latent_plane(codes, None), plots.clouds(codes, None), plots.aggregate(draws)):
        assert all(text.get_window_extent().x1 < figure.bbox.width for text in figure.texts)
        assert Image.open(io.BytesIO(charts.to_png(figure))).width <= 1200
