"""What docs/bundles.md says is so: files, fields, options, and what the digest hangs on."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from export.__main__ import app
from export.make import TOLERANCE
from export.precision import LEAST_PSNR_DB, MOST_LOGVAR, MOST_MU_IN_SIGMA
from service import manifest
from service.bundle import read
from service.manifest import Manifest, digest
from tests.service.linear import fitted_prior, linear, write_linear

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "bundles.md").read_text(encoding="utf-8")
SECTIONS = dict(part.partition("\n")[::2] for part in PAGE.split("\n## "))
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables."""
    lines = re.findall(r"^\|(.*)\|$", text, flags=re.MULTILINE)
    return [[cell.strip() for cell in line.split(" | ")] for line in lines if not re.fullmatch(r"[-| ]+", line)]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def options(command: str) -> dict[str, Any]:
    return {
        parameter.opts[0]: parameter
        for parameter in COMMANDS[command].params
        if parameter.opts[0].startswith("--") and parameter.opts[0] != "--help"
    }


def test_every_file_of_a_bundle_stands_in_the_page(made: Path) -> None:
    listed = {name for row in rows(PAGE.partition("\n## ")[0]) for name in names(row[0])}
    files = {path.name if path.is_file() else f"{path.name}/" for path in made.iterdir()}
    assert files - {manifest.PRIOR} <= listed
    assert {
        manifest.ENCODER,
        manifest.DECODER,
        manifest.SCORER,
        manifest.PRIOR,
        manifest.PROBE,
        manifest.MANIFEST,
    } <= listed


def test_every_field_of_the_manifest_stands_in_the_page() -> None:
    listed = [name for row in rows(SECTIONS["The manifest"])[1:] for name in names(row[0])]
    assert sorted(listed) == sorted([*Manifest.model_fields, *manifest.Diagnostics.model_fields])


@pytest.mark.parametrize(
    "part",
    [
        manifest.ImageSpec,
        manifest.Likelihood,
        manifest.Parity,
        manifest.Tolerance,
        manifest.ReducedTolerance,
        manifest.Variant,
    ],
)
def test_what_is_inside_a_field_stands_in_the_page(part: type[manifest.Manifest]) -> None:
    told = set(names(SECTIONS["The manifest"]))
    assert [name for name in part.model_fields if name not in told] == []


def test_every_command_stands_in_the_page() -> None:
    assert [name for name in COMMANDS if f"vae-export {name} " not in PAGE] == []


@pytest.mark.parametrize("command", ["make", "onnx", "torch"])
def test_every_option_stands_in_the_page(command: str) -> None:
    listed = {
        name for row in rows(SECTIONS["What becomes a bundle"]) for name in names(row[0]) if name.startswith("--")
    }
    assert len(options(command)) > 7
    assert set(options(command)) <= listed
    assert listed <= set(options("make")) | set(options("onnx")) | set(options("torch"))


# What stands there for an option that is not given.
UNSET = {
    "--name": "the bundle folder's",
    "--licence": "none",
    "--pictures": "the source's own, or the test part of `--calibrate`, or generated ones",
    "--calibrate": "none",
    "--into": "none",
}


def test_defaults_stand_in_the_page() -> None:
    table = {names(row[0])[0]: row[1] for row in rows(SECTIONS["What becomes a bundle"]) if names(row[0])}
    for name, parameter in options("make").items():
        told = {False: "off", None: UNSET.get(name)}
        assert table[name] == told.get(parameter.default, str(parameter.default))
    assert table["--max-run-pixels"] == "2000000"


def test_the_tolerances_stand_in_the_page() -> None:
    allowed = {row[0]: row[1] for row in rows(SECTIONS["Proof"])[1:]}
    assert float(allowed["mu, logvar"].partition(";")[0]) == TOLERANCE.mu == TOLERANCE.logvar
    assert allowed["pictures"] == "one grey level"
    assert TOLERANCE.image == 1
    assert float(allowed["log-likelihood"].split()[0]) == TOLERANCE.log_likelihood
    assert f"a PSNR of at least {LEAST_PSNR_DB:g} dB" in SECTIONS["Proof"]
    assert f"at most {MOST_MU_IN_SIGMA:g} sigma on average, and logvar by {MOST_LOGVAR:g}" in SECTIONS["Proof"]


def test_the_digest_hangs_on_the_fields_and_files_that_the_page_lists(tmp_path: Path) -> None:
    (listed,) = re.findall(r"fields that change answers \(([^)]+)\)", SECTIONS["The digest"])
    write_linear(tmp_path / "mine", linear(), fitted=fitted_prior())
    plain = read(tmp_path / "mine").manifest.model_dump(mode="json")

    def hangs_on(name: str, value: object) -> bool:
        return digest({**plain, name: value}) != digest(plain)

    assert [name for name in plain if name != "files" and hangs_on(name, "another")] == [
        name for name in plain if name in names(listed)
    ]
    other = {"sha256": "0" * 64, "size_bytes": 1}
    changed = {name for name in plain["files"] if hangs_on("files", {**plain["files"], name: other})}
    assert changed == {manifest.ENCODER, manifest.DECODER, manifest.PRIOR}


def test_links_of_the_page_lead_somewhere() -> None:
    assert [link for link in re.findall(r"\]\((?!http)([^)#]+)", PAGE) if not (ROOT / "docs" / link).exists()] == []
