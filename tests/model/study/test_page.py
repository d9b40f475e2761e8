"""The page: what it says of several seeds, and of data without classes."""

import dataclasses

import numpy as np
import pytest

from model.data import Dataset
from model.study.claims import CLAIMS, decide
from model.study.classifier import Skill
from model.study.page import Found, mean_and_spread, render
from model.study.plan import AUTOENCODER, KINDS, PLAIN, SIGMAS, Plan, Settings, plan
from model.study.quantities import QUANTITIES, standard_error_of


def found_of(made: Plan, *, has_classes: bool) -> Found:
    lacking = () if has_classes else ("density", "coverage", "confidence", "feature", "label")
    skill = Skill(accuracy=0.875, largest_share=0.25, n=1_000) if has_classes else None
    numbers = {key: None if any(part in key for part in lacking) else 0.25 for key in QUANTITIES}
    of_kinds = {
        kind: [{**numbers, "mmd": 0.1 * place + seed} for seed in made.seeds] for place, kind in enumerate(KINDS)
    }
    return Found(
        measured=of_kinds,
        plane=of_kinds,
        swept=dict.fromkeys(SIGMAS, numbers),
        reference=dict.fromkeys((2, 16), numbers),
        verdicts=[decide(claim, measured=of_kinds, plane=of_kinds, skill=skill) for claim in CLAIMS],
        skill=skill,
        seconds=90.0,
        machine="a machine",
    )


@pytest.fixture
def labelled(dataset: Dataset) -> Dataset:
    return dataclasses.replace(dataset, train_labels=np.arange(30) % 3, test_labels=np.arange(10) % 3)


def test_several_seeds_have_a_spread_and_one_has_none() -> None:
    assert mean_and_spread([1.0, 2.0, 3.0], digits=2) == "2.00 ± 1.00"
    assert mean_and_spread([-1234.5], digits=1) == "−1,234.5"
    assert mean_and_spread([None, None], digits=2) == "–"


def test_the_page_says_in_how_many_seeds_a_claim_held(labelled: Dataset) -> None:
    made = plan(labelled, Settings(seeds=3))
    page = render(made, found_of(made, has_classes=True))
    # The KL term: the VAE's 0.2 against the autoencoder's 0 and beta 0's 0.1. All other numbers are alike.
    assert page.count("reversed (0 of 3)") == 2
    assert page.count("not told apart (0 of 3)") == len(CLAIMS) - 2
    assert f"<b>2 reversed, {len(CLAIMS) - 2} not told apart</b>" in page
    assert "once in 8" in page
    assert "in each of 3 seeds" in page
    assert "1.200 ± 1.000" in page.replace("1.2000 ± 1.0000", "1.200 ± 1.000")
    assert "autoencoder-16-seed2" in page
    assert "names 87.5% of 1,000 test pictures rightly, where the largest class makes 25.0% of them" in page


def test_without_classes_rows_are_left_out_and_the_page_says_so(dataset: Dataset) -> None:
    made = plan(dataset, Settings())
    page = render(made, found_of(made, has_classes=False))
    assert "The data has no classes" in page
    assert page.count("Not decided: this data has no classes") == 1
    assert "Fitted beside fitted" not in page
    assert "neighbours agree" not in page
    assert "Samples from N(0, I)</th>" not in page
    assert page.count(">not decided<") == sum("density" in c.lower.key or "coverage" in c.lower.key for c in CLAIMS) + 1


def test_of_one_seed_a_number_has_its_error_of_measurement(labelled: Dataset) -> None:
    made = plan(labelled, Settings())
    found = found_of(made, has_classes=True)
    numbers = {**found.measured[PLAIN][0], standard_error_of("fitted_density"): 0.0625}
    page = render(made, dataclasses.replace(found, measured={**found.measured, PLAIN: [numbers]}))
    assert page.count("0.250 ± 0.062") == 2  # in the table, and fitted beside fitted
    assert "density 0.250 : 0.250 ± 0.062, coverage 0.250 : 0.250" in page


def test_the_margin_of_a_claim_stands_beside_it(labelled: Dataset) -> None:
    made = plan(labelled, Settings())
    found = found_of(made, has_classes=True)
    kinds = {
        kind: [{**seeds[0], standard_error_of("mmd"): 0.01}] if kind in (PLAIN, AUTOENCODER) else seeds
        for kind, seeds in found.measured.items()
    }
    verdicts = [decide(claim, measured=kinds, plane=found.plane, skill=found.skill) for claim in CLAIMS]
    page = render(made, dataclasses.replace(found, verdicts=verdicts))
    assert '<td class="n">0.0283</td>' in page
    assert '<td class="n">0.0200</td>' in page


def test_the_sweep_leaves_out_what_a_beta_4_has_otherwise(labelled: Dataset) -> None:
    made = plan(labelled, Settings())
    sweep = render(made, found_of(made, has_classes=True)).split("is also beta 4 at")[1]
    assert "Reconstruction: error" in sweep
    assert "Reconstruction: recon" not in sweep


def test_a_name_is_no_markup(labelled: Dataset) -> None:
    made = plan(dataclasses.replace(labelled, name="<b>cats</b> & dogs"), Settings())
    page = render(made, found_of(made, has_classes=True))
    assert "<b>cats" not in page
    assert "&lt;b&gt;cats&lt;/b&gt; &amp; dogs" in page
