"""A manifest as a person reads it."""

import dataclasses
import re
from pathlib import Path

import pytest

from export.summary import in_words, runs_in_words, summary
from service.bundle import read
from tests.service.linear import fitted_prior, linear, open_linear, write_linear

MODEL = linear((6, 5, 3), (4,))
REDUCED = {
    "precision": "int8",
    "tolerance": {"mu_in_sigma": 0.8, "mu_in_sigma_mean": 0.1, "logvar": 0.3, "psnr_db": 35.0},
    "variant": {
        "encoder_speedup": 1.756,
        "decoder_speedup": 2.04,
        "batch_rows": 64,
        "size_ratio": 0.26,
        "machine": "a laptop",
    },
}


def sections(text: str) -> dict[str, dict[str, str]]:
    """What stands beside each name, by title."""
    parts = (section.partition("\n") for section in text.split("\n\n"))
    return {
        title: dict(re.findall(r"^  (\S+(?: \S+)*?)\s{2,}(.*)$", rows, flags=re.MULTILINE)) for title, _, rows in parts
    }


def test_a_trained_model_is_told_with_its_files_its_proof_and_its_figures(made: Path) -> None:
    text = summary(read(made).manifest)
    found = sections(text)
    assert list(found) == [
        "digits",
        "model",
        "files",
        "measured against the source",
        "latents, over test pictures",
        "figures, over test pictures",
    ]
    assert not set("{}[]\"'") & set(text)
    assert found["digits"]["licence"] == "MIT"
    assert found["model"] == {
        "family": "vae",
        "pictures": "8×8, grey",
        "latents": "5",
        "likelihood": "gaussian, sigma 0.3",
        "prior": found["model"]["prior"],
        "scale head": "logvar, logvar from -15 to 15",
    }
    assert re.fullmatch(r"\s*\d+ kB  sha256 [0-9a-f]{12}…", found["files"]["decoder.onnx"])
    measured = found["measured against the source"]
    assert re.fullmatch(r"largest \S+, mean \S+, allowed 0\.0001", measured["mu"])
    assert re.fullmatch(r"largest \S+, mean \S+, allowed 1", measured["pictures"])
    assert re.fullmatch(r"\d+ pictures, \d+ of them real", measured["over"])
    assert measured["runs of"] == "1, 2, 7, 64 rows of 8×8"
    assert re.fullmatch(r"\d of 5", found["latents, over test pictures"]["active units"])
    assert re.fullmatch(r"-?[\d.,]+", found["figures, over test pictures"]["elbo"])


def test_all_values_stand_in_one_column(made: Path) -> None:
    rows = [line for line in summary(read(made).manifest).splitlines() if line.startswith("  ")]
    starts = {re.match(r"  \S+(?: \S+)*?\s{2,}", row).end() for row in rows if "kB" not in row and "MB" not in row}  # type: ignore[union-attr]
    assert len(starts) == 1


def test_open_sizes_say_what_a_request_may_ask(tmp_path: Path) -> None:
    write_linear(tmp_path / "mine", open_linear(), likelihood=None, latent_scale=0.18215, licence=None)
    found = sections(summary(read(tmp_path / "mine").manifest))
    model = found["model"]
    assert model["pictures"] == "colour, sides are multiples of 4 up to 64, 16 where none is asked for"
    assert model["latents"] == "2 × height/4 × width/4"
    assert model["likelihood"] == "unknown"
    assert model["latent scale"] == "0.18215, not applied to z"
    assert found["mine"]["licence"] == "none; vae-export pack asks for one"


def test_an_autoencoder_has_no_scale_and_a_prior_only_if_one_was_fitted(tmp_path: Path) -> None:
    model = dataclasses.replace(MODEL, family="autoencoder")
    write_linear(tmp_path / "plain", model)
    write_linear(tmp_path / "fitted", model, fitted=fitted_prior())
    plain, fitted = (sections(summary(read(tmp_path / name).manifest))["model"] for name in ("plain", "fitted"))
    assert "scale head" not in plain
    assert (plain["prior"], fitted["prior"]) == ("none", "fitted")


def test_a_reduced_precision_says_what_it_gains_and_costs(tmp_path: Path) -> None:
    nothing = {"max": 0.0, "mean": 0.0}
    parity = MODEL.fields("x")["parity"] | {"mu_in_sigma": {"max": 0.031, "mean": 0.002}, "psnr_db": 41.27}  # type: ignore[operator]
    write_linear(tmp_path / "mine", MODEL, **REDUCED, parity=parity | {"logvar": nothing})
    text = summary(read(tmp_path / "mine").manifest)
    found = sections(text)
    assert found["mine"]["precision"] == "int8, ONNX opset 20"
    measured = found["measured against the source"]
    assert measured["mu in sigmas"] == "largest 0.031, mean 0.002, allowed 0.8, on average 0.1"
    assert measured["PSNR"] == "41.3 dB, at least 35"
    assert measured["mu"] == "largest 0, mean 0"
    assert measured["logvar"] == "largest 0, mean 0, allowed 0.3"
    assert found["against the same graphs in fp32"] == {
        "encoder": "1.76 times as fast",
        "decoder": "2.04 times as fast",
        "size": "26%",
        "with": "64 rows, on a laptop",
    }


def test_no_text_of_a_bundle_forges_a_line_or_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    forged = "\x1b[2J\r\n  licence  MIT\x9b\u2028\u202e"
    shown = r"\x1b[2J\r\n  licence  MIT\x9b\u2028\u202e"
    source = {"kind": "onnx", "version": f"1{forged}", "network": f"café {forged}"}
    variant = REDUCED["variant"] | {"machine": forged}  # type: ignore[operator]
    write_linear(
        tmp_path / "mine",
        MODEL,
        **REDUCED | {"variant": variant},
        licence=forged,
        source=source,
        metrics={f"elbo{forged}": 1.5},
    )
    text = summary(read(tmp_path / "mine").manifest)
    assert all(line.isprintable() for line in text.split("\n"))
    assert f"  {shown}" in text
    assert f"café {shown}, read with onnx 1{shown}" in text
    assert f"64 rows, on {shown}" in text
    assert f"elbo{shown}  1.5" in text


@pytest.mark.parametrize(
    ("n_bytes", "words"),
    [(999, "999 bytes"), (775_307, "775 kB"), (999_999, "1.0 MB"), (331_200_000, "331.2 MB")],
)
def test_sizes_are_told_in_words(n_bytes: int, words: str) -> None:
    assert in_words(n_bytes) == words


def test_runs_are_told_size_by_size() -> None:
    assert runs_in_words(((1, 8, 8), (2, 8, 8), (1, 128, 256))) == "1, 2 rows of 8×8; 1 rows of 128×256"
