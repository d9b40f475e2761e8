"""Answers on the probe: which differences are refused, in which units."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.bundle import read
from service.engine import Engine
from service.manifest import DECODER, ENCODER, SCORER
from tests.service.broken import made, with_constant, with_last
from tests.service.linear import Linear, open_linear
from tests.service.refusals import REDUCED, refusal, started


@pytest.mark.parametrize("name", ["mu", "logvar", "z", "decoded"])
def test_answers_other_than_the_probes_are_refused(tmp_path: Path, colour: Linear, name: str) -> None:
    probe = colour.probe()
    array = getattr(probe, name).copy()
    array[2] += 3
    folder = made(tmp_path / "b", colour, probe=replace(probe, **{name: array}))
    file, output = (ENCODER, name) if name in {"mu", "logvar"} else (DECODER, "image")
    sentence = refusal(folder)
    assert sentence.startswith(f"{folder / file}: {output} differs from the probe by ")
    assert sentence.endswith(f", the tolerance is {1 if output == 'image' else 0.0001:g}")


@pytest.mark.parametrize(("difference", "refused"), [(0.9e-4, False), (1.2e-4, True)])
def test_the_manifests_tolerance_is_the_bound(tmp_path: Path, colour: Linear, difference: float, refused: bool) -> None:
    probe = colour.probe()
    folder = made(tmp_path / "b", colour, probe=replace(probe, mu=probe.mu + np.float32(difference)))
    if refused:
        assert "mu differs from the probe by 0.00012" in refusal(folder)
    else:
        Engine(read(folder), device="cpu", threads=1)


@pytest.mark.parametrize(("share", "is_refused"), [(0.9e-4, False), (1.2e-4, True)])
def test_a_mu_that_spreads_far_is_compared_by_its_spread(
    tmp_path: Path, colour: Linear, share: float, is_refused: bool
) -> None:
    wide = replace(colour, a=colour.a * 1000)
    probe = wide.probe()
    spread = probe.mu.std()
    assert spread > 100
    folder = made(tmp_path / "b", wide, probe=replace(probe, mu=probe.mu + np.float32(share * spread)))
    if is_refused:
        assert "mu differs from the probe by 0.00012" in refusal(folder)
    else:
        assert started(folder)


@pytest.mark.parametrize("output", ["mu", "logvar"])
def test_a_graph_that_gives_infinity_is_refused(tmp_path: Path, colour: Linear, output: str) -> None:
    weight = {"mu": "a", "logvar": "b"}[output]
    graph = with_constant(colour.encoder(), weight, np.full_like(colour.a, np.inf))
    folder = made(tmp_path / "b", colour, encoder=graph)
    assert refusal(folder) == f"{folder / ENCODER}: on 4 rows {output} holds NaN or infinity, expected numbers"


def test_a_nan_in_the_probe_itself_is_refused(tmp_path: Path, colour: Linear) -> None:
    probe = colour.probe()
    folder = made(tmp_path / "b", colour, probe=replace(probe, mu=np.full_like(probe.mu, np.nan)))
    assert "encoder.onnx: mu differs from the probe by nan" in refusal(folder)


@pytest.mark.parametrize(("share", "is_refused"), [(0.9e-4, False), (1.2e-4, True)])
def test_a_scorers_answers_are_compared_by_their_size(
    tmp_path: Path, colour: Linear, share: float, is_refused: bool
) -> None:
    probe = colour.probe()
    score = colour.log_likelihood(probe.image, probe.z)
    assert np.abs(score).min() > 1000
    probe = replace(probe, log_likelihood=score * np.float32(1 + share))
    folder = made(tmp_path / "b", colour, scorer=colour.scorer(), probe=probe)
    if is_refused:
        said = "log_likelihood differs from the probe by 0.00012, the tolerance is 0.0001"
        assert refusal(folder) == f"{folder / SCORER}: {said}"
    else:
        assert started(folder).scorer


def test_answers_that_only_stretch_to_the_probes_shape_are_refused(tmp_path: Path) -> None:
    """One place of a latent, compared with sixteen, would be compared with each of them."""
    model = open_linear()
    constant = replace(model, a=model.a * 0, b=model.b * 0)
    one_place = {"starts": np.array([0, 0]), "ends": np.array([1, 1]), "axes": np.array([2, 3])}
    graph = with_last(constant.encoder(), "mu", "Slice", one_place)
    folder = made(tmp_path / "b", constant, encoder=graph)
    sentence = f"{folder / ENCODER}: mu is (4, 2, 1, 1) on the probe, expected (4, 2, 4, 4)"
    assert refusal(folder) == sentence


@pytest.mark.parametrize("head", ["logvar", "sigma"])
def test_a_small_sigma_of_a_converted_head_is_compared_as_sigma(tmp_path: Path, colour: Linear, head: str) -> None:
    narrow = replace(colour, b=colour.b * 0 - np.float32(1))  # logvar is minus the sum of x, 90 numbers in [0, 1]
    probe = narrow.probe()
    assert probe.logvar is not None
    assert np.exp(probe.logvar / 2).max() < 1e-3
    probe = replace(probe, logvar=probe.logvar + np.float32(0.01))
    folder = made(tmp_path / "b", narrow, probe=probe, scale_head=head)
    if head == "sigma":
        assert started(folder)
    else:
        assert refusal(folder) == f"{folder / ENCODER}: logvar differs from the probe by 0.01, the tolerance is 0.0001"


@pytest.mark.parametrize(("share", "said"), [(0.09, None), (0.11, "0.11 sigma, the tolerance is 0.1 sigma")])
@pytest.mark.parametrize("scale", [0.1, 1, 10])
def test_below_fp32_mu_is_compared_in_sigma(
    tmp_path: Path, colour: Linear, share: float, said: str | None, scale: float
) -> None:
    """The same share of each sigma, of whatever size they are."""
    model = replace(colour, b=colour.b * np.float32(scale))
    probe = model.probe()
    assert probe.logvar is not None
    moved = probe.mu + np.float32(share) * np.exp(probe.logvar / 2)
    folder = made(tmp_path / "b", model, probe=replace(probe, mu=moved), **REDUCED)
    if said is None:
        assert started(folder).precision == "int8"
    else:
        assert refusal(folder) == f"{folder / ENCODER}: mu differs from the probe by {said}"


def test_below_fp32_an_autoencoders_mu_is_compared_in_its_spread(tmp_path: Path, colour: Linear) -> None:
    model = replace(colour, family="autoencoder", a=colour.a * 1000)
    probe = model.probe()
    spread = probe.mu.std()
    for share, name in ((0.09, "within"), (0.11, "beyond")):
        made(tmp_path / name, model, probe=replace(probe, mu=probe.mu + np.float32(share * spread)), **REDUCED)
    assert started(tmp_path / "within").precision == "int8"
    said = "mu differs from the probe by 0.11 sigma, the tolerance is 0.1 sigma"
    assert refusal(tmp_path / "beyond") == f"{tmp_path / 'beyond' / ENCODER}: {said}"


@pytest.mark.parametrize(("levels", "said"), [(4, None), (5, "is 34.2 dB from the probe's, the tolerance is 35 dB")])
def test_below_fp32_pictures_are_compared_by_their_psnr(
    tmp_path: Path, colour: Linear, levels: int, said: str | None
) -> None:
    probe = colour.probe()
    further = np.where(probe.decoded < 128, probe.decoded + levels, probe.decoded - levels).astype(np.uint8)
    folder = made(tmp_path / "b", colour, probe=replace(probe, decoded=further), **REDUCED)
    if said is None:
        assert started(folder)
    else:
        assert refusal(folder) == f"{folder / DECODER}: image {said}"


@pytest.mark.parametrize(
    ("stated", "said"),
    [({"logvar": 0.2}, "differs from the probe by 0.3, the tolerance is 0.2"), ({"logvar": 0.4}, None), ({}, None)],
    ids=["beyond", "within", "of a bundle that states none"],
)
def test_below_fp32_logvar_is_compared_where_the_bundle_states_how_near_it_is(
    tmp_path: Path, colour: Linear, stated: dict[str, float], said: str | None
) -> None:
    probe = colour.probe()
    assert probe.logvar is not None
    probe = replace(probe, logvar=probe.logvar + np.float32(0.3))
    tolerance = {"mu_in_sigma": 0.1, "psnr_db": 35, **stated}
    folder = made(tmp_path / "b", colour, probe=probe, **REDUCED | {"tolerance": tolerance})
    if said is None:
        assert started(folder)
    else:
        assert refusal(folder) == f"{folder / ENCODER}: logvar {said}"


@pytest.mark.parametrize(("by", "is_refused"), [(0.05, False), (0.4, True)])
@pytest.mark.parametrize("name", ["mu", "logvar"])
def test_below_fp32_a_graph_that_is_off_everywhere_is_refused_though_no_number_is_off_by_much(
    tmp_path: Path, colour: Linear, name: str, by: float, is_refused: bool
) -> None:
    probe = colour.probe()
    assert probe.logvar is not None
    if name == "mu":
        probe = replace(probe, mu=probe.mu + np.float32(by) * np.exp(probe.logvar / 2))
    else:
        probe = replace(probe, logvar=probe.logvar + np.float32(by))
    tolerance = {"mu_in_sigma": 1, "mu_in_sigma_mean": 0.1, "logvar": 1, "logvar_mean": 0.1, "psnr_db": 35}
    folder = made(tmp_path / "b", colour, probe=probe, **REDUCED | {"tolerance": tolerance})
    if not is_refused:
        assert started(folder)
    else:
        unit = " sigma" if name == "mu" else ""
        expected = f"differs from the probe by {by}{unit} on average, the tolerance is 0.1{unit} on average"
        assert refusal(folder) == f"{folder / ENCODER}: {name} {expected}"


def test_below_fp32_a_logvar_that_is_no_number_is_refused(tmp_path: Path, colour: Linear) -> None:
    graph = with_constant(colour.encoder(), "b", np.full_like(colour.b, np.inf))
    folder = made(tmp_path / "b", colour, encoder=graph, **REDUCED)
    assert refusal(folder) == f"{folder / ENCODER}: on 4 rows logvar holds NaN or infinity, expected numbers"
