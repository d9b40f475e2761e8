"""What runs beside the service names what the service has: metrics, reasons, alerts, files."""

import asyncio
import json
import re
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


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def alerts() -> list[dict[str, Any]]:
    (group,) = read("deploy/prometheus/alerts.yml")["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DEPLOY / "grafana/dashboards/vaeserve.json").read_text())["panels"]
    return found


@pytest.fixture(scope="module")
def exposed() -> dict[str, set[str]]:
    """The labels of each metric on /metrics, those of a histogram under each of its three names."""

    async def scrape() -> str:
        app = create_app(Settings())
        app.state.metrics.serving()
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


def test_prometheus_reads_the_alerts_of_the_job_that_they_are_about() -> None:
    config = read("deploy/prometheus/prometheus.yml")
    (job,) = config["scrape_configs"]
    jobs = {name for alert in alerts() for name in re.findall(r'job="(\w+)"', alert["expr"])}
    assert jobs == {job["job_name"]}
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
    services = {
        name: service
        for name, service in read("docker-compose.yml")["services"].items()
        if "observability" in service.get("profiles", [])
    }
    assert set(services) == {"prometheus", "grafana"}
    for service in services.values():
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service["image"])
        mounted = [volume.split(":") for volume in service["volumes"] if volume.startswith("./")]
        assert mounted
        for source, _, mode in mounted:
            assert (ROOT / source).is_dir()
            assert mode == "ro"
    (target,) = read("deploy/prometheus/prometheus.yml")["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target == "api:8000"
    assert read("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"][0]["url"].endswith(":9090")
    (provider,) = read("deploy/grafana/provisioning/dashboards/vaeserve.yml")["providers"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in services["grafana"]["volumes"]
