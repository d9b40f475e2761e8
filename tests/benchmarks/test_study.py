"""The tables that docs/latent-space.md has of a study are those that one command prints of it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results, study
from model.study.claims import CLAIMS
from model.study.plan import KINDS
from model.study.quantities import QUANTITIES

PAGE = (Path(__file__).parents[2] / "docs" / "latent-space.md").read_text(encoding="utf-8")


def found_of(seeds: int) -> dict[str, Any]:
    """As a study writes it: the VAE's error is 0.1 + 0.1 for each seed, all else 0.25."""
    numbers = [
        {kind.name: dict.fromkeys(QUANTITIES, 0.25) | {"kl": None} for kind in KINDS}
        | {"vae": dict.fromkeys(QUANTITIES, 0.25) | {"rmse": 0.1 * (seed + 1)}}
        for seed in range(seeds)
    ]
    of_kinds = {kind.name: [of[kind.name] for of in numbers] for kind in KINDS}
    return {
        "seconds": 120.0,
        "machine": "a machine",
        "data": "clothes",
        "settings": {"seeds": seeds, "latent_dim": 16},
        "classifier": {"accuracy": 0.9, "largest_share": 0.1, "n": 1_000},
        "measured": of_kinds,
        "plane": {kind.name: [{**of, "plane_share": 0.5} for of in of_kinds[kind.name]] for kind in KINDS},
        "swept": {},
        "reference": {"2": {"plane_share": 1.0}, "16": {"mmd": -0.0001}},
        "claims": [
            {
                "claim": claim.sentence,
                "lower": [0.04139] * seeds,
                "higher": [0.107] * seeds,
                "held_in": seeds,
                "verdict": "held",
            }
            for claim in CLAIMS[:-1]
        ]
        + [{"claim": CLAIMS[-1].sentence, "lower": [], "higher": [], "held_in": 0, "verdict": "not decided"}],
    }


def printed(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(results, "FOLDER", folder / "results")
    monkeypatch.setattr(sys, "argv", ["study", str(folder)])
    study.main()
    return capsys.readouterr().out


def test_both_tables_are_printed_and_the_figures_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "study.json").write_text(json.dumps(found_of(3)))
    out = printed(tmp_path, capsys, monkeypatch)
    assert out.startswith("clothes, 2.0 minutes on a machine; classifier 90.0%, the largest class 10.0%;")
    assert f"of {len(CLAIMS)} claims {len(CLAIMS) - 1} held, 1 not decided\n" in out
    assert "| claim | lower : higher, for seeds 0, 1, 2 |  |\n|---|---|---|\n" in out
    assert f"| {CLAIMS[0].sentence} | 0.0414 : 0.107, 0.0414 : 0.107, 0.0414 : 0.107 | held (3 of 3) |" in out
    assert f"| {CLAIMS[-1].sentence} | – | not decided |" in out
    assert "| error | 0.2500 ± 0.0000 | 0.2500 ± 0.0000 | 0.2000 ± 0.1000 | 0.2500 ± 0.0000 |  |" in out
    assert "| KL | – | – | 0.25 ± 0.00 | – |  |" in out
    assert "| MMD | 0.2500 ± 0.0000 | 0.2500 ± 0.0000 | 0.2500 ± 0.0000 | 0.2500 ± 0.0000 | −0.0001 |" in out
    assert "| plane covered, 2 latents | 0.500 ± 0.000 | 0.500 ± 0.000 | 0.500 ± 0.000 | 0.500 ± 0.000 | 1.000 |" in out
    kept = json.loads((tmp_path / "results" / "study.json").read_text())
    assert kept["studied_on"] == "a machine"
    assert kept["measured"] == found_of(3)["measured"]
    assert len(kept["claims"]) == len(CLAIMS)


def test_of_one_seed_and_without_a_classifier_there_is_nothing_over_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "study.json").write_text(json.dumps(found_of(1) | {"classifier": None}))
    out = printed(tmp_path, capsys, monkeypatch)
    assert "; no classifier; of" in out
    assert f"| {CLAIMS[0].sentence} | 0.0414 : 0.107 | held |" in out
    assert "| error | 0.2500 | 0.2500 | 0.1000 | 0.2500 |  |" in out


@pytest.mark.parametrize("content", [None, '{"seconds": 3.0}'])
def test_a_study_that_has_not_come_to_its_end_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    with pytest.raises(SystemExit):
        printed(tmp_path, capsys, monkeypatch)
    assert "got no study that has come to its end" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_the_page_has_both_tables_of_the_study_that_was_kept() -> None:
    kept = json.loads((results.FOLDER / "study.json").read_text(encoding="utf-8"))
    assert study.claims(kept) in PAGE
    assert study.numbers(kept) in PAGE


def test_every_row_is_a_number_of_a_study_and_the_page_names_the_command() -> None:
    assert study.ROWS.keys() <= QUANTITIES.keys()
    assert "python -m benchmarks.study study" in PAGE.split("## On Fashion-MNIST")[1].split("| claim |")[0]
