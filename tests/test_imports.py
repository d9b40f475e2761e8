"""What may be loaded where: the service without torch, and the packages only in the directions that DESIGN allows."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("service", "model", "export", "tests", "benchmarks")
NEVER_IN_SERVICE = ("torch", "onnx", "onnxscript", "sklearn", "tqdm", "model", "export")
# Reading a bundle, running it, comparing its answers; and fitting pictures to a size, for which there is one rule.
FOR_EXPORT = tuple(
    f"service.{name}"
    for name in ("bundle", "manifest", "engine", "graph", "machine", "graph_file", "differences", "images")
)
COMMANDS = {"vae-train": "model.__main__:app", "vae-export": "export.__main__:app", "vae-serve": "service.__main__:app"}

SERVICE_MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "service").rglob("*.py")
)


def loaded_after(*modules: str) -> set[str]:
    """Top-level names in `sys.modules` of a fresh interpreter that imported these."""
    program = "import importlib, json, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    program += "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *modules], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def imports(package: str) -> Iterator[tuple[str, str]]:
    """(file and line, full name of the module) of every import in a package, those inside functions too."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", name


def within(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def test_the_application_loads_without_torch() -> None:
    loaded = loaded_after("service.app")
    assert "service" in loaded
    assert not loaded & set(NEVER_IN_SERVICE)


def test_the_parent_of_several_workers_loads_no_engine() -> None:
    loaded = loaded_after("service.__main__")
    assert "service" in loaded
    assert "onnxruntime" not in loaded


def test_no_module_of_the_service_loads_torch() -> None:
    assert "service.app" in SERVICE_MODULES
    assert not loaded_after(*SERVICE_MODULES) & set(NEVER_IN_SERVICE)


@pytest.mark.parametrize(
    ("package", "never"),
    [
        ("service", (*NEVER_IN_SERVICE, "tests", "benchmarks")),
        ("model", ("service", "export", "onnxruntime", "tests", "benchmarks")),
        ("export", ("tests", "benchmarks")),
    ],
)
def test_a_package_never_imports(package: str, never: tuple[str, ...]) -> None:
    found = list(imports(package))
    assert found
    assert [f"{where}: {name}" for where, name in found if within(name, never)] == []


def test_export_takes_from_the_service_only_what_reads_and_proves_bundles() -> None:
    taken = [(where, name) for where, name in imports("export") if within(name, ("service",))]
    assert taken
    assert [item for item in taken if not within(item[1], FOR_EXPORT)] == []


def test_the_packages_that_hold_parts_are_empty_inside() -> None:
    # export's sets one variable, since any part of it may be the first to import onnxruntime.
    assert [name for name in ("service", "model") if (ROOT / name / "__init__.py").read_text().strip()] == []


def test_the_distribution_has_its_three_commands() -> None:
    scripts = metadata.distribution("vaeserve").entry_points.select(group="console_scripts")
    assert {script.name: script.value for script in scripts} == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_explains_itself(command: str) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name(command), "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_tells_its_version(command: str) -> None:
    told = subprocess.run(
        [Path(sys.executable).with_name(command), "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert told.stdout == f"{command} {metadata.version('vaeserve')}\n"
