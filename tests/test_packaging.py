"""Locks, extras, image and compose file say the same thing as pyproject.toml and DESIGN."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
ENGINES = {
    "cpu": ["onnxruntime"],
    "dev": ["onnxruntime"],
    "gpu": ["onnxruntime-gpu"],
    "hub": [],
    "import": [],
    "openvino": ["onnxruntime-openvino"],
    "traces": [],
    "train": [],
}
# What a stage of the image is made from: the stages it names, and its own lines.
Stages = dict[str, tuple[set[str], str]]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def lock(extra: str) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in text(f"locks/{extra}.txt").splitlines())
    return [Requirement(line) for line in lines if line]


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def versions(requirement: Requirement) -> list[str]:
    return [specifier.version for specifier in requirement.specifier if specifier.operator == "=="]


def wanted(extra: str) -> list[Requirement]:
    """What pyproject.toml asks for under an extra, the extras that it names included."""
    found: list[Requirement] = []
    for requirement in map(Requirement, EXTRAS[extra]):
        if requirement.name == PROJECT["name"]:
            found += [inner for name in sorted(requirement.extras) for inner in wanted(name)]
        else:
            found.append(requirement)
    return found


def engines(requirements: list[Requirement]) -> list[str]:
    return sorted(name for name in names(requirements) if re.fullmatch(r"onnxruntime(-\w+)?", name))


def stages() -> Stages:
    """The stages of the Dockerfile, in order."""
    found: Stages = {}
    joined = re.sub(r"\\\n", "", text("Dockerfile"))
    for block in re.split(r"^(?=FROM )", joined, flags=re.MULTILINE)[1:]:
        first, _, body = block.partition("\n")
        base, name = re.fullmatch(r"FROM (\S+) AS (\S+)", first).groups()  # type: ignore[union-attr]
        lines = "\n".join(line for line in body.splitlines() if not line.startswith("#"))
        found[name] = ({base, *re.findall(r"--from=(\S+)", lines)}, lines)
    return found


def everything_in(stage: str) -> str:
    """The lines of a stage and of all that it is made from."""
    sources, lines = stages()[stage]
    return "\n".join([lines, *(everything_in(source) for source in sorted(sources) if source in stages())])


def services() -> dict[str, str]:
    """Each service of the compose file with its lines, read by indentation."""
    _, _, body = text("docker-compose.yml").partition("\nservices:\n")
    parts = re.split(r"^  ([\w-]+):\n", body, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_there_is_one_lock_per_extra() -> None:
    assert {path.stem for path in (ROOT / "locks").glob("*.txt")} == set(EXTRAS) == set(ENGINES)


@pytest.mark.parametrize("extra", ENGINES)
def test_a_lock_names_exact_versions_and_nothing_else(extra: str) -> None:
    entries = lock(extra)
    assert entries
    for entry in entries:
        assert re.fullmatch(r"==[\w.]+", str(entry.specifier)), f"{entry}: expected one exact version"
        assert entry.url is None
    assert "://" not in text(f"locks/{extra}.txt")


@pytest.mark.parametrize(("extra", "engine"), ENGINES.items())
def test_an_extra_and_its_lock_bring_the_engine_that_design_says(extra: str, engine: list[str]) -> None:
    assert engines(wanted(extra)) == engines(lock(extra)) == engine


@pytest.mark.parametrize("extra", ENGINES)
def test_a_lock_satisfies_pyproject(extra: str) -> None:
    for requirement in [*map(Requirement, PROJECT["dependencies"]), *wanted(extra)]:
        found = [entry for entry in lock(extra) if canonicalize_name(entry.name) == canonicalize_name(requirement.name)]
        assert found, f"{requirement} is not in locks/{extra}.txt"
        for entry in found:
            assert requirement.specifier.contains(versions(entry)[0], prereleases=True), f"{entry}, want {requirement}"


@pytest.mark.parametrize("extra", ["cpu", "gpu", "openvino", "train"])
def test_what_is_served_was_tested(extra: str) -> None:
    tested = {entry.name: {str(other) for other in lock("dev") if other.name == entry.name} for entry in lock("dev")}
    differ = [str(entry) for entry in lock(extra) if str(entry) not in tested.get(entry.name, {str(entry)})]
    assert differ == []


@pytest.mark.parametrize("extra", ["cpu", "gpu", "openvino"])
def test_a_serving_lock_holds_nothing_of_training(extra: str) -> None:
    training = names(wanted("train"))
    assert "torch" in training
    assert not names(lock(extra)) & training


@pytest.mark.parametrize("extra", ["dev", "train"])
def test_torch_is_locked_without_the_packages_of_one_of_its_builds(extra: str) -> None:
    assert [str(entry) for entry in lock(extra) if entry.name == "torch"] == ["torch==2.13.0"]
    assert [name for name in names(lock(extra)) if re.match(r"nvidia|cuda|triton|pytorch-triton", name)] == []


@pytest.mark.parametrize("file", ["Makefile", "Dockerfile", "locks/uv.toml"])
def test_torch_has_the_same_version_everywhere(file: str) -> None:
    assert set(re.findall(r"torch==([\w.]+)", text(file))) == {"2.13.0"}


def test_the_image_has_a_target_for_cpu_gpu_and_training_and_cpu_is_the_default() -> None:
    assert {"cpu", "gpu", "train"} <= set(stages())
    assert list(stages())[-1] == "cpu"


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_that_serves_is_made_without_torch(target: str) -> None:
    made_from = everything_in(target)
    assert f"install -r locks/{target}.txt" in made_from
    assert set(re.findall(r"locks/(\w+)\.txt", made_from)) == {target, "traces"}
    assert not re.search(r"torch|COPY (model|export|\.) ", made_from)


@pytest.mark.parametrize("target", ["cpu", "gpu", "train"])
def test_an_image_does_not_run_as_root(target: str) -> None:
    users = re.findall(r"^USER (\S+)$", everything_in(target), flags=re.MULTILINE)
    assert users
    assert all(re.fullmatch(r"[1-9]\d*:[1-9]\d*", user) for user in users)


@pytest.mark.parametrize("target", ["cpu", "gpu", "train"])
def test_an_image_reports_to_nobody(target: str) -> None:
    assert re.search(r"^ENV .*\bORT_DISABLE_TELEMETRY=1\b", everything_in(target), flags=re.MULTILINE)


@pytest.mark.parametrize("target", ["cpu", "gpu", "train"])
def test_an_image_finds_no_module_in_the_folder_that_it_is_started_in(target: str) -> None:
    assert re.search(r"^ENV .*\bPYTHONSAFEPATH=1\b", everything_in(target), flags=re.MULTILINE)


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_that_serves_asks_after_its_health_with_python_alone(target: str) -> None:
    (asked,) = re.findall(r"^HEALTHCHECK .*CMD (.+)$", everything_in(target), flags=re.MULTILINE)
    assert asked.startswith('["python", "-c", "import http.client')
    assert "/health/ready" in asked


def test_everything_that_is_locked_is_audited() -> None:
    (sets,) = re.findall(r"^SETS := (.+)$", text("Makefile"), flags=re.MULTILINE)
    assert sorted(sets.split()) == sorted(EXTRAS)
    assert "pip-audit --strict --disable-pip --no-deps $(foreach set,$(SETS),-r locks/$(set).txt)" in text("Makefile")


def test_the_bill_of_materials_is_of_what_the_image_installs() -> None:
    _, _, rule = text("Makefile").partition("\n$(IMAGE)/stamp:")
    made_of = re.findall(r"-r (locks/\w+\.txt)", rule.partition("\n\n")[0])
    assert made_of == re.findall(r"-r (locks/\w+\.txt)", everything_in("cpu"))


def test_the_tools_of_the_makefile_have_exact_versions() -> None:
    tools = re.findall(r"^[A-Z_]+ := ([a-z-]+[=<>~!]=.*)$", text("Makefile"), flags=re.MULTILINE)
    assert len(tools) == 5
    assert [tool for tool in tools if not re.fullmatch(r"[a-z-]+==[\d.]+", tool)] == []


def test_only_what_the_image_copies_reaches_its_build() -> None:
    allowed = {line[1:] for line in text(".dockerignore").splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text("Dockerfile"), flags=re.MULTILINE)
    assert {source.partition("/")[0] for sources in copied for source in sources.split()} == allowed
    assert all((ROOT / name).exists() for name in allowed)


def test_the_compose_file_names_the_targets_of_the_image() -> None:
    built = {
        name: target
        for name, lines in services().items()
        for target in re.findall(r"^      target: (\S+)$", lines, flags=re.MULTILINE)
    }
    assert built == {"api": "cpu", "api-gpu": "gpu", "train": "train"}
    assert set(built.values()) <= set(stages())
    assert set(services()) - set(built) == {"prometheus", "grafana"}


@pytest.mark.parametrize(
    ("service", "profile"),
    [
        ("api", []),
        ("api-gpu", ["gpu"]),
        ("prometheus", ["observability"]),
        ("grafana", ["observability"]),
        ("train", ["train"]),
    ],
)
def test_only_the_api_starts_without_a_profile(service: str, profile: list[str]) -> None:
    assert re.findall(r"^    profiles: \[(\S+)\]$", services()[service], flags=re.MULTILINE) == profile


@pytest.mark.parametrize("service", ["api", "api-gpu"])
def test_bundles_are_mounted_read_only(service: str) -> None:
    assert "- ./bundles:/bundles:ro\n" in services()[service]
