"""Claims: held, reversed, not told apart or not decided, by the numbers alone."""

import pytest

from model.study.claims import CLAIMS, Claim, Figure, Verdict, decide
from model.study.classifier import Skill
from model.study.plan import AUTOENCODER, BETA_0, KINDS, PLAIN
from model.study.quantities import QUANTITIES, standard_error_of

CLAIM = Claim("It is nearer.", Figure(PLAIN, "mmd"), Figure(AUTOENCODER, "mmd"))
OF_SAMPLES = Claim("It is like data.", Figure(AUTOENCODER, "linear_density"), Figure(PLAIN, "linear_density"))
SKILL = Skill(accuracy=0.9, largest_share=0.1, n=1_000)


def verdict_of(
    claim: Claim,
    lower: list[float | None],
    higher: list[float | None],
    *,
    errors: tuple[float, float] | None = None,
    active_units: float = 3.0,
    skill: Skill | None = SKILL,
) -> Verdict:
    """What is made of numbers, one for each seed, each with the standard error of its side."""
    measured = {}
    for place, (figure, values) in enumerate(((claim.lower, lower), (claim.higher, higher))):
        known = {} if errors is None else {standard_error_of(figure.key): errors[place]}
        units = None if figure.kind is AUTOENCODER else active_units
        measured[figure.kind] = [{figure.key: value, "active_units": units, **known} for value in values]
    return decide(claim, measured=measured, plane={}, skill=skill)


def decided(claim: Claim, lower: list[float | None], higher: list[float | None]) -> tuple[str, int]:
    verdict = verdict_of(claim, lower, higher)
    return verdict.word, verdict.held_in


def test_a_claim_holds_if_it_is_true_for_every_seed_and_is_reversed_if_its_opposite_is() -> None:
    assert decided(CLAIM, [0.1, 0.2], [0.3, 0.3]) == ("held", 2)
    assert decided(CLAIM, [0.1, 0.4], [0.3, 0.3]) == ("not told apart", 1)
    assert decided(CLAIM, [0.4, 0.5], [0.3, 0.3]) == ("reversed", 0)
    assert decided(CLAIM, [0.1], [0.3]) == ("held", 1)
    assert decided(CLAIM, [0.4], [0.3]) == ("reversed", 0)


def test_equal_numbers_and_no_numbers_are_not_told_apart() -> None:
    assert decided(CLAIM, [0.3], [0.3]) == ("not told apart", 0)
    assert decided(CLAIM, [0.3, 0.4], [0.3, 0.3]) == ("not told apart", 0)
    assert decided(CLAIM, [float("nan")], [0.3]) == ("not told apart", 0)


@pytest.mark.parametrize(("apart", "word"), [(0.09, "not told apart"), (0.11, "held"), (-0.09, "not told apart")])
def test_numbers_within_two_standard_errors_of_their_difference_are_not_told_apart(apart: float, word: str) -> None:
    verdict = verdict_of(CLAIM, [0.3], [0.3 + apart], errors=(0.03, 0.04))
    assert verdict.pairs[0].margin == pytest.approx(2 * 0.05)
    assert verdict.word == word
    assert verdict_of(CLAIM, [0.3, 0.3], [0.3 + apart, 0.5], errors=(0.03, 0.04)).word == word


def test_what_the_data_has_no_numbers_for_is_not_decided() -> None:
    verdict = verdict_of(CLAIM, [None], [0.3])
    assert (verdict.word, verdict.held_in, verdict.reason) == ("not decided", 0, "there are too few test pictures")


def test_a_vae_without_an_active_unit_decides_nothing() -> None:
    """Where its codes are N(0, I) themselves, its MMD is as low as it can be."""
    verdict = verdict_of(CLAIM, [0.0, 0.0], [0.3, 0.3], active_units=0)
    assert verdict.word == "not decided"
    assert verdict.reason == "VAE has no active unit: its codes tell nothing of a picture"
    claim = Claim("It is full.", Figure(BETA_0, "plane_share", True), Figure(PLAIN, "plane_share", True))
    plane = {BETA_0: [{"plane_share": 0.1, "active_units": 2.0}], PLAIN: [{"plane_share": 0.9, "active_units": 0.0}]}
    found = decide(claim, measured={}, plane=plane, skill=None)
    assert found.reason == "VAE with 2 latents has no active unit: its codes tell nothing of a picture"


@pytest.mark.parametrize(
    ("skill", "said"),
    [
        (None, "this data has no classes to train a classifier on"),
        (
            Skill(accuracy=0.95, largest_share=0.9, n=1_000),
            "the classifier names 95.0% of 1,000 test pictures rightly, where the largest class makes 90.0% of them",
        ),
        (
            Skill(accuracy=1.0, largest_share=0.5, n=40),
            "the classifier names 100.0% of 40 test pictures rightly, where the largest class makes 50.0% of them",
        ),
    ],
)
def test_what_is_judged_in_features_needs_a_classifier_that_knows_something(skill: Skill | None, said: str) -> None:
    verdict = verdict_of(OF_SAMPLES, [0.1], [0.9], skill=skill)
    assert verdict.word == "not decided"
    assert verdict.reason is not None
    assert verdict.reason.removesuffix(": too little to judge pictures in its features") == said
    assert verdict_of(OF_SAMPLES, [0.1], [0.9]).word == "held"
    assert verdict_of(CLAIM, [0.1], [0.9], skill=skill).word == "held"


def test_a_claim_of_the_plane_is_decided_there() -> None:
    claim = Claim("It is full.", Figure(AUTOENCODER, "plane_share", of_plane=True), Figure(PLAIN, "plane_share", True))
    plane = {AUTOENCODER: [{"plane_share": 0.1}], PLAIN: [{"plane_share": 0.9}]}
    assert decide(claim, measured={}, plane=plane, skill=None).word == "held"


def test_every_claim_names_numbers_that_a_study_has() -> None:
    figures = [figure for claim in CLAIMS for figure in (claim.lower, claim.higher)]
    assert {figure.key for figure in figures} <= QUANTITIES.keys()
    assert {figure.kind for figure in figures} <= set(KINDS)
    assert all(figure.of_plane == (figure.key == "plane_share") for figure in figures)
    assert len({claim.sentence for claim in CLAIMS}) == len({claim.number for claim in CLAIMS}) == len(CLAIMS)


def test_realism_mmd_the_plane_and_smoothness_all_decide_something() -> None:
    deciding = {claim.lower.key for claim in CLAIMS}
    assert {"standard_density", "standard_coverage", "mmd", "plane_share", "pixel_unevenness"} <= deciding


def test_a_claim_says_what_decides_it() -> None:
    assert CLAIM.number == "MMD of VAE < MMD of autoencoder"
