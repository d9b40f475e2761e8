"""What README and docs say is so: their commands run, and they list all that there is."""

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from fastapi.routing import APIRoute
from PIL import Image

from model.__main__ import app as training_app
from model.training import TrainConfig
from model.vae import LIKELIHOODS, ModelConfig
from service.app import create_app
from service.errors import PROBLEMS
from service.settings import SHIPPED_BUNDLE, Settings
from tests.serving import Server, serving

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shipped() -> Iterator[Server]:
    with serving([]) as server:
        yield server


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_curl_lines_of_readme_make_the_pictures_they_promise(shipped: Server, tmp_path: Path) -> None:
    script = "set -e\n" + blocks("sh")[0].replace("http://127.0.0.1:8000", shipped.url).replace("curl -s", "curl -sfS")
    finished = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert '"logvar":[[' in finished.stdout
    sizes = {path.name: _size(path) for path in tmp_path.iterdir()}
    promised = re.findall(r"-o (\S+)", script)
    assert sorted(sizes) == sorted(promised)
    assert sizes["strip.png"] == (9 * 28 * 4, 28 * 4)
    assert sizes["traverse.png"] == (9 * 28 * 3, 8 * 28 * 3)
    assert re.search(r'"elbo":\[-?[\d.]+,-?[\d.]+\]', finished.stdout)
    assert len(re.findall(r"^curl", script, flags=re.MULTILINE)) == 7


def test_the_python_lines_of_readme_fetch_embeddings(shipped: Server, tmp_path: Path) -> None:
    for name in ("picture.png", "decoded.png"):
        Image.new("L", (40, 30), 90).save(tmp_path / name)
    code = blocks("python")[0].replace("http://127.0.0.1:8000", shipped.url)
    command = [sys.executable, "-c", code + "\nprint(posterior['mu'].shape, posterior['logvar'].dtype)"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.stdout == "(2, 16) float32\n", finished.stderr


def test_every_make_target_that_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"^\s*make ([a-z-]+)", README, flags=re.MULTILINE)) <= targets


def test_every_page_and_picture_that_readme_links_exists() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_route_stands_in_the_api_page() -> None:
    app = create_app(Settings(bundles=(SHIPPED_BUNDLE,)))
    paths = [route.path for route in app.routes if isinstance(route, APIRoute)] + list(app.openapi()["paths"])
    verbs = [path for path in paths if path != "/"]
    assert len(verbs) >= 8
    assert [path for path in verbs if f"{path}`" not in API] == []


def test_every_problem_stands_in_the_api_page() -> None:
    listed = re.findall(r"^\| (\d+) \| `urn:vaeserve:problem:([a-z-]+)`", API, flags=re.MULTILINE)
    assert listed == [(str(problem.status), problem.kind) for problem in PROBLEMS]


def test_every_setting_stands_in_the_operations_page_with_its_default() -> None:
    rows = dict(re.findall(r"\| `(VAE_[A-Z_]+)` \| (.*?) \|", OPERATIONS))
    words = {"False": "off", "None": "none", "()": "none"}
    defaults = {f"VAE_{name.upper()}": str(field.default) for name, field in Settings.model_fields.items()}
    expected = {variable: words.get(default, default) for variable, default in defaults.items()}
    expected["VAE_BUNDLES"] = "the shipped model"
    assert rows == expected


def test_every_setting_is_a_flag() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "service", "--help"], capture_output=True, text=True, check=True, env=_wide()
    )
    flags = {f"--{name.replace('_', '-')}" for name in Settings.model_fields if name != "bundles"}
    assert {flag for flag in flags if flag not in finished.stdout} == set()
    assert {flag for flag in flags if f"`{flag}`" not in OPERATIONS} == set()


@pytest.mark.parametrize("command", ["fit", "evaluate"])
def test_every_option_of_training_stands_in_its_page(command: str) -> None:
    commands = typer.main.get_command(training_app).commands  # type: ignore[attr-defined]
    options = [parameter.opts[0] for parameter in commands[command].params if parameter.opts[0].startswith("--")]
    listed = set(re.findall(r"`(--[a-z-]+)[ `]", "".join(re.findall(r"^\| `--.*? \|", TRAINING, flags=re.MULTILINE))))
    assert len(options) > 5
    assert [option for option in options if option != "--help" and option not in listed] == []


def test_the_defaults_of_training_are_those_of_its_page() -> None:
    rows = dict(re.findall(r"^\| `--([a-z-]+)` \| `?([^|`]+?)`? \|", TRAINING, flags=re.MULTILINE))
    defaults = {field.name: field.default for kind in (ModelConfig, TrainConfig) for field in dataclasses.fields(kind)}
    compared = {name for name in rows if name.replace("-", "_") in defaults} - {"features", "depth"}
    assert len(compared) > 15
    stated = {name: rows[name].replace("off", "False") for name in compared}
    assert {name: text for name, text in stated.items() if text != _shown(defaults[name.replace("-", "_")])} == {}


def test_every_likelihood_stands_in_the_training_page() -> None:
    assert re.findall(r"^\| `([a-z_]+)` \| a (?:density|mass)", TRAINING, flags=re.MULTILINE) == list(LIKELIHOODS)


def _shown(default: object) -> str:
    return f"{default:g}" if isinstance(default, float) else str(default)


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def _wide() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
