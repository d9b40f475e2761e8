"""Verdicts: trusted where every figure at hand is fine, with the numbers in the reason, and none without figures."""

from typing import Any

import pytest

from model.trust import Verdict, judge

NEAR = {"mean": [0.1, -0.2], "variance": [0.9, 1.1]}
REAL = {"density": 1.2, "coverage": 0.8, "expected_coverage": 0.96}
GOOD: dict[str, Any] = {
    "protocol": {"images": 10},
    "aggregate": NEAR,
    "samples": {"standard": REAL, "fitted": REAL},
}


def with_samples(**priors: Any) -> dict[str, Any]:
    return {"aggregate": NEAR, "samples": {"standard": REAL, "fitted": REAL} | priors}


def test_good_figures_are_trusted_and_stand_in_the_reason() -> None:
    found = judge("vae", GOOD)
    assert found.standard == Verdict(
        True,
        "Over the test pictures latents have means up to 0.20 from 0 and variances of 0.90 to 1.10."
        " Samples from N(0, I) cover 80% of the test pictures; real pictures would cover 96%."
        " They lie among them with a density of 1.20; real pictures would have 1.",
    )
    assert found.fitted is not None
    assert found.fitted.trusted
    assert "the fitted prior cover 80%" in found.fitted.reason
    assert "variances" not in found.fitted.reason


@pytest.mark.parametrize(
    ("aggregate", "said"),
    [
        ({"mean": [0.0, -2.5], "variance": [1.0, 1.0]}, "means up to 2.50 from 0"),
        ({"mean": [0.0, 0.0], "variance": [0.04, 1.0]}, "variances of 0.04 to 1.00"),
        ({"mean": [0.0, 0.0], "variance": [1.0, 9.0]}, "variances of 1.00 to 9.00"),
    ],
)
def test_latents_far_from_the_prior_are_not_trusted_however_real_samples_look(
    aggregate: dict[str, Any], said: str
) -> None:
    found = judge("vae", GOOD | {"aggregate": aggregate})
    for verdict in (found.standard, found.interpolate):
        assert verdict is not None
        assert not verdict.trusted
        assert said in verdict.reason
        assert "places where few pictures are" in verdict.reason
    assert found.fitted is not None
    assert found.fitted.trusted


@pytest.mark.parametrize("lacking", [{"coverage": 0.47}, {"density": 0.49}])
def test_samples_that_are_not_real_enough_are_not_trusted_though_moments_are_near(lacking: dict[str, float]) -> None:
    found = judge("vae", with_samples(standard=REAL | lacking))
    assert found.standard is not None
    assert not found.standard.trusted
    assert found.fitted is not None
    assert found.fitted.trusted
    fitted = judge("vae", with_samples(fitted=REAL | lacking)).fitted
    assert fitted is not None
    assert not fitted.trusted


@pytest.mark.parametrize("enough", [{"coverage": 0.48}, {"density": 0.5}])
def test_half_of_what_real_pictures_have_is_enough(enough: dict[str, float]) -> None:
    found = judge("vae", with_samples(standard=REAL | enough)).standard
    assert found is not None
    assert found.trusted


def test_what_lies_between_codes_is_judged_by_the_prior_and_the_reason_says_so() -> None:
    found = judge("vae", GOOD)
    assert found.interpolate is not None
    assert found.standard is not None
    assert found.interpolate.trusted
    assert found.interpolate.reason == (
        "Pictures between two codes were not measured; they are judged by how near all codes are to N(0, I). "
        + found.standard.reason
    )


def test_a_decoder_that_ignores_z_is_not_trusted_however_near_its_one_picture_is() -> None:
    found = judge("vae", GOOD | {"active_units": 0})
    for verdict in (found.standard, found.fitted, found.interpolate):
        assert verdict is None or not verdict.trusted
    assert found.fitted is not None
    assert found.fitted.reason.startswith("No latent is active: every z is decoded to the same picture. Samples from")


def test_small_codes_of_an_autoencoder_and_a_lone_test_picture_do_not_speak_of_a_decoder_that_ignores_z() -> None:
    fitted = judge("autoencoder", GOOD | {"active_units": 0}).fitted
    assert fitted is not None
    assert fitted.trusted
    fitted = judge("vae", GOOD | {"active_units": 0, "protocol": {"images": 1}}).fitted
    assert fitted is not None
    assert fitted.trusted


def test_an_autoencoder_has_no_standard_prior_and_nothing_vouches_for_its_paths() -> None:
    found = judge("autoencoder", GOOD)
    assert found.standard is None
    assert found.fitted is not None
    assert found.fitted.trusted
    assert found.interpolate is not None
    assert not found.interpolate.trusted
    assert "an autoencoder's objective says" in found.interpolate.reason


@pytest.mark.parametrize("metrics", [{}, {"aggregate": None, "samples": None}])
def test_without_figures_there_is_no_verdict(metrics: dict[str, Any]) -> None:
    found = judge("vae", metrics)
    assert (found.standard, found.fitted, found.interpolate) == (None, None, None)


def test_moments_alone_are_enough_for_a_verdict_on_the_standard_prior() -> None:
    found = judge("vae", {"aggregate": NEAR})
    assert found.standard is not None
    assert found.standard.trusted
    assert found.fitted is None
