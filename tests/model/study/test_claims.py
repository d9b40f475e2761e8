"""Claims: held, not held or not decided, by the numbers alone."""

from model.study.claims import CLAIMS, Claim, Figure, decide
from model.study.plan import AUTOENCODER, KINDS, PLAIN
from model.study.quantities import QUANTITIES

CLAIM = Claim("It is nearer.", Figure(PLAIN, "mmd"), Figure(AUTOENCODER, "mmd"))


def decided(claim: Claim, plain: list[float | None], autoencoder: list[float | None]) -> tuple[str, int]:
    measured = {
        PLAIN: [{claim.lower.key: value} for value in plain],
        AUTOENCODER: [{claim.higher.key: value} for value in autoencoder],
    }
    verdict = decide(claim, measured=measured, plane={})
    return verdict.word, verdict.held_in


def test_a_claim_holds_if_it_is_true_for_every_seed() -> None:
    assert decided(CLAIM, [0.1, 0.2], [0.3, 0.3]) == ("held", 2)
    assert decided(CLAIM, [0.1, 0.4], [0.3, 0.3]) == ("not held", 1)
    assert decided(CLAIM, [0.4], [0.3]) == ("not held", 0)


def test_equal_numbers_and_no_numbers_do_not_hold() -> None:
    assert decided(CLAIM, [0.3], [0.3]) == ("not held", 0)
    assert decided(CLAIM, [float("nan")], [0.3]) == ("not held", 0)


def test_what_the_data_has_no_numbers_for_is_not_decided() -> None:
    assert decided(CLAIM, [None], [0.3]) == ("not decided", 0)


def test_a_claim_of_the_plane_is_decided_there() -> None:
    claim = Claim("It is full.", Figure(AUTOENCODER, "plane_share", of_plane=True), Figure(PLAIN, "plane_share", True))
    plane = {AUTOENCODER: [{"plane_share": 0.1}], PLAIN: [{"plane_share": 0.9}]}
    assert decide(claim, measured={}, plane=plane).word == "held"


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
