"""The card: all figures at hand, none that is not, and every picture with a word on it."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint import DataConfig, Origin, RunConfig
from model.report import card
from model.report.pictures import NAMES
from model.training import TrainConfig
from model.vae import ModelConfig

METRICS: dict[str, Any] = {
    "protocol": {"data": "blo|cks", "images": 10, "draws": 2, "binarised": None},
    "elbo": -1234.567,
    "recon": 1214.5,
    "kl": 20.067,
    "kl_per_dimension": [1.0, 2.0, 3.0],
    "active_units": 2,
    "bpd": 1.23456,
    "psnr": 21.61,
    "ssim": 0.876,
    "aggregate": {"largest_correlation": 0.25, "mmd": 0.00123, "mmd_spread": 0.0005, "logvar_at_clamp": 0.0},
    "nll": {
        "protocol": {"samples": [128, 5000], "seed": 3, "model_sha256": "ab" * 32},
        "5000": {"nll": 1200.25, "standard_error": 4.5},
        "128": {"nll": 1201.5, "standard_error": None},
    },
    "samples": {
        "standard": {"density": 0.5, "coverage": 0.75},
        "fitted": {"density": 0.625, "coverage": 0.875},
        "protocol": {"samples": 1000},
    },
}
HISTORY = [{"step": 60, "epoch": 2.0, "seconds": 300.0, "images_per_s": 4321.0, "elbo": -1.0, "validation": None}]


@pytest.fixture
def config() -> RunConfig:
    return RunConfig(
        model=ModelConfig(9, 6, 1, latent_dim=3),
        training=TrainConfig(epochs=2),
        data=DataConfig(name="blo|cks", n_train=3000, n_validation=3, validation_seed=0, n_test=10, sha256="ab12" * 16),
    )


def _render(config: RunConfig, **parts: Any) -> str:
    usual = {"metrics": METRICS, "pictures": NAMES, "n_weights": 404_513, "history": HISTORY, "machine": {"threads": 2}}
    return card.render("a-run", config, **{**usual, **parts})


def test_a_card_says_what_a_run_is_and_how_good(config: RunConfig) -> None:
    text = _render(config)
    assert text.startswith("# a-run\n\nA variational autoencoder of 9×6 grey pictures with 3 latents, trained on 3,000")
    for row in (
        "| elbo | -1,234.57 nats |",
        "| kl | 20.07 nats |",
        "| nll, 128 draws | 1,201.50 nats |",
        "| nll, 5,000 draws | 1,200.25 nats ± 4.50 |",
        "| bits/dim | 1.235 |",
        "| active units | 2 of 3 |",
        "| psnr | 21.61 dB |",
        "| MMD to the prior | 0.0012 (spread 0.0005) |",
        "| logvar at its clamp | 0.00% |",
        "| samples | N(0, I) | fitted prior |",
        "| coverage | 0.750 | 0.875 |",
        "| logvar range | -15 to 15 |",
        "| weights | 404,513 |",
        "| learning rate | 0.002 |",
        "| sha256 | `ab12ab12ab12…`",
    ):
        assert row in text
    assert "Over test pictures: data blo|cks · images 10 · draws 2.\n" in text
    assert "Nll: samples 128, 5,000 · seed 3.\n" in text
    assert "fitted prior, not kept" in _render(config, metrics={"samples": {"rejected": {"density": 0.5}}})
    assert "60 steps in 5.0 minutes, 4,321 images/s" in text
    assert "Machine: threads 2." in text


def test_every_picture_is_shown_with_a_sentence_and_a_relative_link(config: RunConfig) -> None:
    text = _render(config)
    shown = re.findall(r"### (.+)\n\n(.+\.|.+\?|.+\))\n\n!\[\1\]\(pictures/(\w+)\.png\)", text)
    assert [name for _, _, name in shown] == list(NAMES)
    assert "## Pictures" not in _render(config, pictures=[])


def test_figures_that_are_not_there_are_not_spoken_of(config: RunConfig) -> None:
    bare = _render(config, metrics={}, history=[], machine={}, pictures=[])
    nulls = _render(config, metrics=dict.fromkeys(METRICS), history=[], machine={}, pictures=[])
    assert bare == nulls
    assert "None" not in bare
    assert not re.search(r"elbo|nll|psnr|coverage|Machine|steps in", bare.split("## Training")[0])


def test_every_table_has_as_many_cells_in_each_row(config: RunConfig) -> None:
    tables = re.findall(r"(?:^\|.*\|\n)+", _render(config), flags=re.MULTILINE)
    assert len(tables) == 6
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_a_run_that_started_from_another_sends_the_reader_there_too(config: RunConfig) -> None:
    started = dataclasses.replace(config, origin=Origin(name="photos", sha256="ab12" * 16, same_test=True))
    assert "pictures of blo|cks. It started from the weights of photos; what those had learnt from" in _render(started)
    assert "started from" not in _render(config)


def test_doubts_are_counted_above_their_table(config: RunConfig) -> None:
    text = _render(config)
    assert text.count("| **look** |") == 1
    assert "One figure asks for a closer look." in text
    assert "The figures raise no doubt." in _render(config, metrics=METRICS | {"active_units": 3})


def test_an_autoencoder_has_no_elbo(config: RunConfig) -> None:
    model = ModelConfig(9, 6, 3, latent_dim=3, family="autoencoder")
    text = _render(
        RunConfig(model=model, training=config.training, data=config.data), metrics={"elbo": -1.0, "recon": 1.0}
    )
    assert "An autoencoder of 9×6 colour pictures" in text
    assert "| recon | 1.00 nats |" in text
    assert "| elbo |" not in text


def test_a_card_lies_in_its_run(tmp_path: Path, config: RunConfig) -> None:
    card.write(tmp_path / ".", config, metrics={}, pictures=[], n_weights=1)
    assert (tmp_path / "card.md").read_text(encoding="utf-8").startswith(f"# {tmp_path.name}\n")
