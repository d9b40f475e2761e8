"""docs/api.md: its commands run, and its tables say of every verb what the code knows."""

import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.latents import Purpose
from service.schemas import Options, PictureOptions
from tests.service.linear import Linear
from tests.service.verbs import VERBS
from tests.service.wire import opened, picture, pixels

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def rows(first_cell: str) -> list[list[str]]:
    """The cells of the table rows whose first cell speaks of a verb."""
    found = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in cells] for cells in found if f"{first_cell}`" in cells[0]]


@pytest.mark.parametrize("path", VERBS)
def test_every_option_of_a_verb_stands_in_its_row(path: str) -> None:
    own = set(VERBS[path].options.model_fields)
    shared = PictureOptions if issubclass(VERBS[path].options, PictureOptions) else Options
    options = next(cells[1] for cells in rows(path) if cells[0].startswith(("`GET", "`POST")))
    assert set(re.findall(r"`(\w+)`", options)) == own - set(shared.model_fields)


def test_the_defaults_and_bounds_of_options_are_those_of_the_schemas() -> None:
    listed = {
        name: tuple(cell.strip() for cell in line.strip("|").split("|")[1:])
        for line in PAGE[PAGE.index("| option | default |") : PAGE.index("What an answer may hold")].splitlines()[2:]
        for name in re.findall(r"`(\w+)`", line.strip("|").split("|")[0])
    }
    schemas = {
        name: schema
        for verb in VERBS.values()
        for name, schema in verb.options.model_json_schema()["properties"].items()
        if name not in Options.model_fields
    }
    assert set(listed) == set(schemas)
    for name, schema in schemas.items():
        default, may_be = listed[name]
        if schema["default"] is not None:
            assert default.strip("`") == str(schema["default"]).removesuffix(".0").lower(), name
        if said := _bounds(schema):
            assert may_be == said, name


def _bounds(schema: dict[str, Any]) -> str | None:
    """What a schema says of an option's values, in the words of the page; None where that is nothing of each value."""
    of = next((each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"), schema)
    if "enum" in of:
        return ", ".join(f"`{each}`" for each in of["enum"])
    least, most = of.get("minimum"), of.get("maximum")
    if "exclusiveMinimum" in of:
        return f"above {of['exclusiveMinimum']:g}, to {most:g}"
    if least is None or schema.get("description", "").startswith(("Height", "Width")):
        return None
    return f"from {least}" if most is None else f"{least} to {most}"


@pytest.mark.parametrize("path", VERBS)
def test_every_form_of_a_verb_stands_in_its_row_in_order(path: str) -> None:
    forms = next(cells[1] for cells in rows(path) if not cells[0].startswith(("`GET", "`POST")))
    assert re.findall(r"`(\w+)`", forms) == [form.label for form in VERBS[path].forms]


def test_the_verbs_that_take_pictures_are_those_it_says() -> None:
    (said,) = [line for line in PAGE.splitlines() if line.startswith("| `image/png`")]
    assert set(re.findall(r"`(/\w+)`", said)) == {path for path, verb in VERBS.items() if "images" in verb.takes}


def test_the_number_of_every_purpose_stands_in_the_seed_contract() -> None:
    assert [purpose.value for purpose in Purpose] == [0, 1, 2, 3]
    said = "is 0 for the prior, 1 for draws of `/encode`, 2 for draws of `/score`, 3 for the fitted prior"
    assert said in " ".join(PAGE.split())


def test_its_commands_give_what_they_promise(kinds: httpx.Client, full: Linear, tmp_path: Path) -> None:
    for index, name in enumerate(("picture.png", "decoded.png")):
        picture(pixels(1, (40, 30, 3), seed=index)[0]).save(tmp_path / name)
    commands = re.findall(r"^    ((?:curl|\{ printf) .*)$", PAGE, flags=re.MULTILINE)
    script = "set -e\n" + "\n".join(commands).replace("http://127.0.0.1:8000", str(kinds.base_url).rstrip("/"))
    script = re.sub(r'"z": \[.*?\]', f'"z": {np.zeros(full.latent_shape).tolist()}', script)  # this model has others
    command = ["bash", "-c", script.replace("curl -s", "curl -sfS")]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    paths = ("/encode", "/score", "/decode", "/sample", "/reconstruct", "/traverse")
    assert [path for path in paths if path not in script] == []
    assert finished.stdout.count('"mu":[') == 1
    assert finished.stdout.count('"images":["iVBOR') == 1
    assert finished.stdout.count('"recon":[') == 2
    assert finished.stdout.count('"log_likelihood":[') == 1
    height, width, _ = full.shape
    assert opened((tmp_path / "sample.png").read_bytes(), 3).shape == (4 * 4 * height, 4 * 4 * width, 3)
    compared = opened((tmp_path / "compared.png").read_bytes(), 3)
    assert compared.shape == (2 * 4 * height, 2 * 4 * width, 3)
    traversal = opened((tmp_path / "traversal.png").read_bytes(), 3)
    assert traversal.shape == (3 * 2 * height, 9 * 2 * width, 3)
    with Image.open(tmp_path / "traversal.gif") as moving:
        assert (moving.n_frames, moving.size) == (8 * 9, (width, height))
    assert np.ptp(traversal) > 0
