"""Checks before serving: each raises its voice where its figure asks for it, and only there."""

import dataclasses
from typing import Any

import pytest

from model.checkpoint import DataConfig, Origin, RunConfig
from model.report.checks import checks, figure, nll_estimates
from model.training import TrainConfig
from model.vae import ModelConfig

NLL = {"nll": 89.0, "effective_samples_median": 300.0, "effective_samples_below_10": 0.05}
GOOD: dict[str, Any] = {
    "protocol": {"data": "blocks", "images": 10},
    "kl": 20.0,
    "active_units": 3,
    "aggregate": {"mean": [0.1, -0.2, 0.0], "variance": [0.9, 1.1, 1.0], "logvar_at_clamp": 0.0},
    "nll": {"128": {"nll": 90.0}, "5000": NLL, "protocol": {"draws": 1}},
    "samples": {
        "standard": {
            "coverage": 0.8,
            "expected_coverage": 0.95,
            "neighbour_distance": 4.0,
            "test_neighbour_distance": 4.2,
            "near_training": 0.01,
        },
        "fitted": None,
    },
}


def _line(
    epoch: float, elbo: float, validation: float | None, *, beta: float = 1.0, bounds: tuple[float, ...] = ()
) -> dict[str, Any]:
    """A line of a log whose kl is 20 nats; with bounds, in training and in validation, one of the last phase."""
    found = None if validation is None else {"elbo": validation, "recon": -validation - 20, "kl": 20.0}
    line = {"epoch": epoch, "elbo": elbo, "recon": -elbo - 20, "kl": 20.0, "beta": beta, "bound": None}
    if bounds:
        line["bound"] = bounds[0]
    if found and bounds[1:]:
        found["bound"] = bounds[1]
    return line | {"validation": found}


HISTORY = [_line(1.0, -95.0, -94.0), _line(2.0, -90.0, -91.0)]


def _config(**options: Any) -> RunConfig:
    return RunConfig(
        model=ModelConfig(9, 6, 1, latent_dim=3, family=options.get("family", "vae")),
        training=TrainConfig(epochs=options.get("epochs", 2), beta=options.get("beta", 1.0)),
        data=DataConfig(name="blocks", n_train=30, n_validation=3, validation_seed=0, n_test=10, sha256="ab" * 32),
    )


def _looks(metrics: dict[str, Any], *, history: list[dict[str, Any]] = HISTORY, **options: Any) -> list[str]:
    return [check.name for check in checks(_config(**options), metrics, history=history) if not check.is_fine]


def _with(path: str, value: Any) -> dict[str, Any]:
    name, _, rest = path.partition("/")
    if not rest:
        return GOOD | {name: value}
    inner, _, last = rest.partition("/")
    return GOOD | {name: GOOD[name] | {inner: GOOD[name][inner] | {last: value} if last else value}}


def test_good_figures_raise_no_doubt() -> None:
    found = checks(_config(), GOOD, history=HISTORY)
    assert len(found) == 9
    assert all(check.is_fine for check in found)


@pytest.mark.parametrize(
    ("path", "value", "name", "said"),
    [
        ("active_units", 1, "Latents in use", "The 2 others carry nothing"),
        ("active_units", 0, "Latents in use", "every sample is the same picture"),
        ("aggregate/logvar_at_clamp", 0.02, "Log variances", "2.00%"),
        ("aggregate/mean", [0.0, 0.9, 0.0], "Latents against the prior", "up to 0.90 from 0"),
        ("aggregate/variance", [0.3, 1.0, 1.0], "Latents against the prior", "0.30 to 1.00"),
        ("samples/standard/coverage", 0.3, "Realism of samples", "cover 30%"),
        ("samples/standard/density", 0.4, "Realism of samples", "with a density of 0.40; real pictures would have 1."),
        ("samples/standard/neighbour_distance", 1.0, "Copies of training pictures", "training pictures are given away"),
        (
            "samples/standard/test_neighbour_distance",
            0.0,
            "Copies of training pictures",
            "nothing tells whether samples",
        ),
        ("samples/standard/near_training", 0.06, "Copies of training pictures", "6.0% of samples lie nearer than 99%"),
        ("nll/5000", NLL | {"effective_samples_below_10": 0.12}, "Likelihood estimate", "too pessimistic"),
        (
            "nll/5000",
            {"nll": 89.0, "effective_samples": 9.0},
            "Likelihood estimate",
            "9.0 effective ones on average. It is",
        ),
        ("protocol", {"data": "blocks", "images": 4}, "Test pictures", "4 of 10"),
        ("protocol", {"data": "stripes", "images": 10}, "Test pictures", "learnt from blocks"),
    ],
)
def test_a_figure_that_asks_for_a_look_gets_one_with_its_number(path: str, value: Any, name: str, said: str) -> None:
    metrics = _with(path, value)
    assert _looks(metrics) == [name]
    assert said in next(check.found for check in checks(_config(), metrics, history=HISTORY) if check.name == name)


@pytest.mark.parametrize(
    ("path", "within", "beyond"),
    [
        ("aggregate/logvar_at_clamp", 0.001, 0.0011),
        ("aggregate/mean", [0.0, -0.5, 0.0], [0.0, -0.51, 0.0]),
        ("aggregate/variance", [0.5, 2.0, 1.0], [0.49, 2.0, 1.0]),
        ("aggregate/variance", [0.5, 2.0, 1.0], [0.5, 2.01, 1.0]),
        ("samples/standard/neighbour_distance", 2.1, 2.09),
        ("samples/standard/near_training", 0.05, 0.051),
    ],
)
def test_a_figure_asks_for_a_look_beyond_its_bound_and_not_at_it(path: str, within: Any, beyond: Any) -> None:
    assert _looks(_with(path, within)) == []
    assert len(_looks(_with(path, beyond))) == 1


def test_a_run_that_stopped_early_or_overfits_is_named() -> None:
    assert _looks(GOOD, epochs=3) == ["Training"]
    worse = [*HISTORY[:1], _line(2.0, -60.0, -95.0)]
    assert _looks(GOOD, history=worse) == ["Overfitting"]


def test_overfitting_is_judged_by_the_last_epoch_and_not_by_its_last_step() -> None:
    lines = [
        *HISTORY[:1],
        _line(1.9, -90.0, None),
        _line(2.0, -60.0, -88.5),  # of a batch that was easy
    ]
    assert _looks(GOOD, history=lines) == []
    found = next(check for check in checks(_config(), GOOD, history=lines) if check.name == "Overfitting")
    assert "elbo is -87.00 nats in training" in found.found


def test_weights_of_another_run_that_have_not_learnt_anything_yet_are_named_and_what_they_may_have_seen() -> None:
    origin = Origin(name="many", sha256="ab" * 32, same_test=True)
    started = dataclasses.replace(_config(), origin=origin)
    (found,) = [check for check in checks(started, GOOD, history=[]) if check.name == "Training"]
    assert (found.is_fine, found.found) == (False, "0 of 2 epochs. The run has not come to its end.")
    for same in (True, False):
        config = dataclasses.replace(started, origin=dataclasses.replace(origin, same_test=same))
        (found,) = [check for check in checks(config, GOOD, history=HISTORY) if check.name == "Test pictures"]
        assert found.is_fine is same
    assert found.found.endswith("The weights of many, with which the run began, may have learnt from some of them.")


def test_a_run_that_was_stopped_in_its_warm_up_is_judged_by_what_it_weighs_there() -> None:
    said = _overfitting([_line(1.0, -125.0, -126.0, beta=0.5)])
    assert said == "True: At its end, objective is -115.00 nats in training, -116.00 in validation (-116.00 at best)."


def _overfitting(history: list[dict[str, Any]], **options: Any) -> str | None:
    found = [check for check in checks(_config(**options), GOOD, history=history) if check.name == "Overfitting"]
    return f"{found[0].is_fine}: {found[0].found}" if found else None


def test_a_last_phase_is_judged_by_the_bound_that_it_raises() -> None:
    """It gives up elbo for it, in validation too."""
    first = _line(1.0, -87.0, -87.2)
    said = _overfitting([first, _line(1.5, -88.0, -89.0, bounds=(-84.0, -85.0)), _line(2, -88, -90, bounds=(-83, -84))])
    assert said == "True: At its end, bound is -83.50 nats in training, -84.00 in validation (-84.00 at best)."
    said = _overfitting([first, _line(1.5, -88.0, -89.0, bounds=(-84.0, -85.0)), _line(2, -88, -90, bounds=(-80, -86))])
    assert said == "False: At its end, bound is -82.00 nats in training, -86.00 in validation (-85.00 at best)."
    assert _overfitting([first, _line(2.0, -88.0, -90.0, bounds=(-83.0,))]) is None


def test_another_beta_is_judged_by_what_it_weighs_from_when_it_has_its_full_weight() -> None:
    rising = _line(1.0, -50.0, -50.0, beta=0.5)
    said = _overfitting([rising, _line(1.5, -90.0, -91.0, beta=4.0), _line(2.0, -89.0, -92.0, beta=4.0)], beta=4.0)
    assert said == "False: At its end, objective is -149.50 nats in training, -152.00 in validation (-151.00 at best)."


def test_other_pictures_under_the_same_name_are_named() -> None:
    metrics = _with("protocol", GOOD["protocol"] | {"of_the_run": False})
    assert _looks(metrics) == ["Test pictures"]
    assert _looks(_with("protocol", GOOD["protocol"] | {"of_the_run": True})) == []


def test_the_very_same_pictures_under_another_name_are_those_of_the_run() -> None:
    renamed = GOOD["protocol"] | {"data": "moved", "of_the_run": True}
    assert _looks(_with("protocol", renamed)) == []
    assert _looks(_with("protocol", renamed | {"images": 4})) == ["Test pictures"]
    assert _looks(_with("protocol", renamed | {"of_the_run": False})) == ["Test pictures"]


def test_no_prior_to_sample_from_is_said() -> None:
    assert _looks({}, history=[], family="autoencoder") == ["An autoencoder has no prior"]
    assert _looks(_with("samples/fitted", {"coverage": 0.9}), family="autoencoder") == []
    assert _looks({}, history=[], beta=0.0) == ["Prior"]
    assert _looks(_with("samples/fitted", {"coverage": 0.9}), beta=0.0) == ["Prior"]


def test_samples_are_judged_by_the_prior_that_is_served_unasked() -> None:
    poor = GOOD["samples"]["standard"] | {"coverage": 0.2}
    metrics = GOOD | {"samples": {"standard": poor, "fitted": {"coverage": 0.8, "expected_coverage": 0.95}}}
    assert _looks(metrics) == ["Realism of samples"]
    (found,) = [check.found for check in checks(_config(), metrics, history=HISTORY) if "Realism" in check.name]
    assert found.startswith("Samples from N(0, I) cover 20%")
    assert found.endswith("With prior=fitted they cover 80%.")
    assert _looks(metrics, family="autoencoder") == []


def test_activity_is_told_where_there_are_pictures_for_mu_to_vary_over_and_a_scale_of_its_own() -> None:
    inactive = _with("active_units", 0)
    assert _looks(inactive) == ["Latents in use"]
    assert "Latents in use" not in _looks(inactive | {"protocol": {"data": "blocks", "images": 1}})
    assert "Latents in use" not in _looks(inactive, family="autoencoder")


def test_checks_without_their_figures_are_left_out() -> None:
    assert checks(_config(), {}, history=[]) == []
    assert checks(_config(), {"nll": None, "samples": None, "aggregate": None}, history=[]) == []


def test_figures_are_found_by_their_path() -> None:
    assert figure({"a": {"b": 1}}, "a", "b") == 1
    assert figure({"a": None}, "a", "b") is None
    assert [(found.draws, found.nats) for found in nll_estimates(GOOD)] == [(128, 90.0), (5000, 89.0)]
