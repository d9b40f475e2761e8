"""What runs beside the service names what the service has: metrics, reasons, alerts, files."""

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.app import create_app
from service.errors import PROBLEMS
from service.settings import Settings
from tests.serving import in_process

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, of Prometheus, is not there")


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = read("docker-compose.yml")["services"]
    return found


def alerts() -> list[dict[str, Any]]:
    (group,) = read("deploy/prometheus/alerts.yml")["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def variables() -> list[dict[str, Any]]:
    dashboard = json.loads((DEPLOY / "grafana/dashboards/vaeserve.json").read_text())
    found: list[dict[str, Any]] = dashboard["templating"]["list"]
    return found


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DEPLOY / "grafana/dashboards/vaeserve.json").read_text())["panels"]
    return found


@pytest.fixture(scope="module")
def exposed() -> dict[str, set[str]]:
    """The labels of each metric on /metrics, those of a histogram under each of its three names."""

    async def scrape() -> str:
        app = create_app(Settings())
        app.state.metrics.serving(app.state.deployment.models.labels)
        async with in_process(app) as client:
            await client.get("/sample?seed=1")
            return (await client.get("/metrics")).text

    labels: dict[str, set[str]] = {}
    for name, inside in re.findall(r"^([a-z_]+)(?:\{(.*)\})? ", asyncio.run(scrape()), flags=re.MULTILINE):
        labels.setdefault(name, set()).update(re.findall(r'(\w+)="', inside))
    return labels


def test_every_metric_that_is_named_exists(exposed: dict[str, set[str]]) -> None:
    named = {
        (path.name, name)
        for path in FILES
        for name in re.findall(r"\b(?:vaeserve|process)_[a-z_]+", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 20
    assert [(file, name) for file, name in named if name not in exposed] == []


def test_every_label_that_is_asked_for_exists(exposed: dict[str, set[str]]) -> None:
    expressions = [alert["expr"] for alert in alerts()]
    expressions += [target["expr"] for panel in panels() for target in panel["targets"]]
    asked = [
        (name, label)
        for expression in expressions
        for name, inside in re.findall(r"\b((?:vaeserve|process)_[a-z_]+)\{(.*?)\}", expression)
        for label in re.findall(r"(\w+)(?:=~?|!~?)", inside)
    ]
    assert len(asked) > 20
    given = {"job", "instance"}  # by Prometheus
    assert [(name, label) for name, label in asked if label not in exposed[name] | given] == []


def test_every_reason_that_is_asked_for_is_a_problem() -> None:
    reasons = {reason for path in FILES for reason in re.findall(r'reason="([a-z-]+)"', path.read_text())}
    assert len(reasons) > 2
    assert reasons <= {problem.kind for problem in PROBLEMS}


def test_every_alert_stands_in_the_operations_page_and_no_other() -> None:
    listed = re.findall(r"^\| `(Vaeserve\w+)`", OPERATIONS, flags=re.MULTILINE)
    assert listed == [alert["alert"] for alert in alerts()]
    assert len(set(listed)) == len(listed)
    assert {alert["labels"]["severity"] for alert in alerts()} == {"page", "ticket"}


def test_every_alert_is_seen_to_fire() -> None:
    checks = [check for test in read("deploy/prometheus/alerts.test.yml")["tests"] for check in test["alert_rule_test"]]
    fire = {check["alertname"] for check in checks if check["exp_alerts"]}
    assert fire == {alert["alert"] for alert in alerts()}


@needs_promtool
def test_prometheus_takes_its_configuration() -> None:
    promtool("check", "config", "prometheus.yml")


@needs_promtool
def test_alerts_fire_on_what_they_are_for_and_on_nothing_else() -> None:
    promtool("test", "rules", "alerts.test.yml")


@needs_promtool
def test_prometheus_can_read_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    expressions = [target["expr"] for panel in panels() for target in panel["targets"]]
    filled_in = [each.replace("$__rate_interval", "1m").replace("$instance", ".*") for each in expressions]
    rules = [{"record": f"panel_{index}", "expr": each} for index, each in enumerate(filled_in)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    promtool("check", "rules", str(file))


def promtool(*arguments: str) -> None:
    checked = subprocess.run(
        ["promtool", *arguments], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_alerts_and_dashboard_look_at_nothing_but_the_job_that_prometheus_scrapes() -> None:
    config = read("deploy/prometheus/prometheus.yml")
    (job,) = config["scrape_configs"]
    expressions = [alert["expr"] for alert in alerts()]
    expressions += [target["expr"] for panel in panels() for target in panel["targets"]]
    expressions += [variable["query"]["query"] for variable in variables() if variable["type"] == "query"]
    selected = re.findall(r"\b(?:vaeserve_|process_|up\b)\w*(?:\{.*?\})?", " ".join(expressions))
    assert len(selected) > 50
    assert [each for each in selected if f'{{job="{job["job_name"]}"' not in each] == []
    assert all((DEPLOY / "prometheus" / name).is_file() for name in config["rule_files"])


def test_the_panels_of_the_dashboard_stand_side_by_side() -> None:
    places: dict[tuple[int, int], str] = {}
    for panel in panels():
        place = panel["gridPos"]
        assert panel["targets"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert x < 24
                assert (x, y) not in places, f"{panel['title']} lies on {places[x, y]}"
                places[x, y] = panel["title"]


def test_the_profile_runs_prometheus_and_grafana_on_these_files() -> None:
    beside = {name: service for name, service in services().items() if "observability" in service.get("profiles", [])}
    assert set(beside) == {"prometheus", "grafana"}
    for service in beside.values():
        mounted = [volume.split(":") for volume in service["volumes"] if volume.startswith("./")]
        assert mounted
        for source, _, mode in mounted:
            assert (ROOT / source).is_dir()
            assert mode == "ro"
    (target,) = read("deploy/prometheus/prometheus.yml")["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target == "api:8000"
    assert read("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"][0]["url"].endswith(":9090")
    (provider,) = read("deploy/grafana/provisioning/dashboards/vaeserve.yml")["providers"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in beside["grafana"]["volumes"]
    home = beside["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/vaeserve.json"


@pytest.mark.parametrize("name", services())
def test_a_container_can_change_nothing_and_become_nobody_else(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "devices", "network_mode", "pid", "ipc"} & set(service)


def test_a_pod_is_held_as_a_container_of_compose_is() -> None:
    """Without the lines that are commented out, and with them."""
    text = (DEPLOY / "kubernetes" / "vaeserve.yaml").read_text(encoding="utf-8")
    full = re.sub(r"^( *)# (?=args|volume|  - |- \{)", r"\1", text, flags=re.MULTILINE)
    assert full != text
    for written in (text, full):
        deployment, service = yaml.safe_load_all(written)
        pod = deployment["spec"]["template"]
        assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
        (container,) = pod["spec"]["containers"]
        assert container["securityContext"] == {
            "runAsNonRoot": True,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        settings = {each["name"].removeprefix("VAE_").lower(): each["value"] for each in container["env"]}
        assert set(settings) <= set(Settings.model_fields)
        assert Settings.model_validate(settings).shutdown_timeout_s < pod["spec"]["terminationGracePeriodSeconds"]
        probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
        assert probes == {"startup": "/health/ready", "readiness": "/health/ready", "liveness": "/health/live"}
        assert [port["containerPort"] for port in container["ports"]] == [Settings().port]
        mounted = {mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", [])}
        assert set(mounted) == {volume["name"] for volume in pod["spec"].get("volumes", [])}
        assert all(mount["readOnly"] for mount in container.get("volumeMounts", []))
        if "api_keys_file" in settings:
            assert settings["api_keys_file"] == f"{mounted['keys']}/keys.toml"


@pytest.mark.parametrize("name", services())
def test_a_container_has_bounds(name: str) -> None:
    service = services()[name]
    limits = service["deploy"]["resources"]["limits"]
    assert {"memory", "pids"} <= set(limits)
    assert all(re.search(r":size=\d+[mg]\b", place) for place in service.get("tmpfs", []))


@pytest.mark.parametrize("name", services())
def test_a_container_writes_to_the_folders_that_it_is_there_to_fill(name: str) -> None:
    written = {volume for volume in services()[name].get("volumes", []) if not volume.endswith(":ro")}
    fills = {"prometheus": {"prometheus:/prometheus"}, "train": {"./runs:/train/runs", "./bundles:/train/bundles"}}
    assert written == fills.get(name, set())


@pytest.mark.parametrize("name", services())
def test_an_image_from_a_registry_is_named_by_version_and_digest(name: str) -> None:
    service = services()[name]
    image = service["build"]["args"]["PYTHON"] if "build" in service else service["image"]
    assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+[a-z-]*@sha256:[0-9a-f]{64}", image)


def test_the_base_of_the_images_has_the_python_of_the_dockerfile() -> None:
    (default,) = re.findall(
        r"^ARG PYTHON=(\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    name, version = default.removesuffix("-slim").split(":")
    for service in services().values():
        if "build" in service:
            assert service["build"]["args"]["PYTHON"].startswith(f"{name}:{version}.")
