"""GET /models and /models/{name}: what is loaded, where it runs, and everything its manifest says."""

import json

import httpx
import pytest

from service.manifest import MANIFEST
from tests.service.linear import Bundles


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


@pytest.mark.parametrize("path", ["/models", "/models/colour"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_is_loaded_is_asked_for_again(client: httpx.Client, method: str, path: str) -> None:
    assert client.request(method, path).headers["cache-control"] == "no-cache"


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
