"""GET /models and /models/{name}: what is loaded, where it runs, and everything its manifest says."""

import dataclasses
import json
from pathlib import Path

import httpx
import pytest

from service import greeting
from service.app import create_app
from service.bundle import BadBundle
from service.deployment import deploy
from service.manifest import MANIFEST
from service.observation import tally
from service.observation.metrics import Metrics
from service.observation.tally import Tally
from service.settings import Settings
from tests.service.linear import Bundles, Model, fitted_prior, linear, open_linear, write_linear


def test_models_lists_what_is_loaded_the_default_first(client: httpx.Client, bundles: Bundles) -> None:
    first, second = client.get("/models").json()["models"]
    assert (first["name"], first["default"]) == ("colour", True)
    assert (second["name"], second["default"]) == ("grey", False)
    assert second["image"] == {
        "height": 28, "width": 28, "channels": 1, "stride": 1, "default_side": None, "max_side": None,
    }  # fmt: skip
    assert second["latent_shape"] == [2, 3, 2]
    assert {model["provider"] for model in (first, second)} == {"CPUExecutionProvider"}
    assert {model["precision"] for model in (first, second)} == {"fp32"}


def test_a_model_shows_its_whole_manifest(client: httpx.Client, bundles: Bundles) -> None:
    for name, folder in (("colour", bundles.colour), ("grey", bundles.grey)):
        answer = client.get(f"/models/{name}").json()
        manifest = json.loads((folder / MANIFEST).read_text())
        assert answer["manifest"] == manifest
        assert answer["digest"] == manifest["digest"]


def test_a_model_is_found_by_its_digest_too(client: httpx.Client) -> None:
    digest = client.get("/models/grey").json()["digest"]
    assert client.get(f"/models/grey@{digest}").json()["name"] == "grey"
    assert client.get(f"/models/colour@{digest}").status_code == 404


def test_a_model_shows_the_limits_of_a_request(tight: httpx.Client) -> None:
    assert tight.get("/models/colour").json()["limits"] == {
        "max_body_bytes": 4000,
        "max_json_bytes": 8 * 2**20,
        "max_picture_pixels": 1000,
        "max_answer_pixels": 600,
        "max_request_rows": 8,
        "max_batch_rows": 4,
        "max_run_pixels": 2_000_000,
    }


def test_a_verb_takes_the_model_it_is_told(client: httpx.Client) -> None:
    labels = {name: client.get(f"/sample?seed=1&model={name}").headers["x-model"] for name in ("colour", "grey")}
    for name, label in labels.items():
        assert label == f"{name}@{client.get(f'/models/{name}').json()['digest']}"
        assert client.get("/sample", params={"seed": 1, "model": label}).headers["x-model"] == label
    assert client.get("/sample?seed=1").headers["x-model"] == labels["colour"]


@pytest.mark.parametrize(
    ("places", "device", "lent"), [(2, "cpu", True), (1, "cpu", False), (2, "cuda", False)], ids=str
)
def test_processes_lend_each_other_cores_where_there_are_several_and_graphs_run_on_them(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch, places: int, device: str, lent: bool
) -> None:
    """No GPU is needed: the graphs run where they can, and only the lane is told of another device."""
    monkeypatch.setattr("service.deployment.resolve_device", lambda _asked: device)
    monkeypatch.setattr("service.deployment.available_cores", lambda: 6)
    metrics = Metrics(tally=Tally(tally.shared(places)))
    lane = deploy(Settings(bundles=(bundles.colour,), device="cpu"), cores=2, metrics=metrics).lane
    assert lane.machine_cores == (6 if lent else 2)
    lane.close()


def test_a_fitted_prior_over_other_latents_stops_the_process(tmp_path: Path) -> None:
    write_linear(tmp_path / "model", linear(), fitted=fitted_prior(5))
    expected = r"model/prior.safetensors: means is float32 \(3, 5\), expected float32 \(3, 4\)$"
    with pytest.raises(BadBundle, match=expected):
        create_app(Settings(bundles=(tmp_path / "model",)))


AUTOENCODER = dataclasses.replace(linear(), family="autoencoder")


@pytest.mark.parametrize(
    ("model", "fitted", "line"),
    [
        (linear(), False, "curl -s 'http://127.0.0.1:8000/sample?n=16&seed=7&scale=4' -o sample.png"),
        (linear((80, 64, 1)), False, "curl -s 'http://127.0.0.1:8000/sample?seed=7' -o sample.png"),
        (open_linear(), False, "curl -s 'http://127.0.0.1:8000/sample?n=16&seed=7&scale=4' -o sample.png"),
        (AUTOENCODER, False, "http://127.0.0.1:8000/docs"),
        (AUTOENCODER, True, "curl -s 'http://127.0.0.1:8000/sample?n=16&seed=7&scale=4' -o sample.png"),
    ],
    ids=["small", "large", "open sizes", "autoencoder", "autoencoder with a prior"],
)
def test_the_process_says_what_to_try_first(tmp_path: Path, model: Model, fitted: bool, line: str) -> None:
    write_linear(tmp_path / "model", model, fitted=fitted_prior() if fitted else None)
    deployment = deploy(Settings(bundles=(tmp_path / "model",)))
    told = greeting.lines(deployment, onnxruntime="onnxruntime 1", url="http://127.0.0.1:8000")
    assert told[-1] == f"try:  {line}"
