"""What is said of a model that is not to be trusted: in its description, and with every answer that this touches."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.manifest import MANIFEST
from tests.service.broken import edit_manifest
from tests.service.linear import fitted_prior, linear, write_linear
from tests.service.wire import SAFETENSORS, read_tensors
from tests.serving import serving, stopped

FINE = {"trusted": True, "reason": "All is near."}
FAR = {"trusted": False, "reason": 'Latents are "far" \\ away.'}
SAMPLES = {"type": "untrusted-samples", "detail": FAR["reason"]}
BETWEEN = {"type": "untrusted-interpolation", "detail": FAR["reason"]}
QUOTED = r'"Latents are \"far\" \\ away."'


def diagnostics(**trust: Any) -> dict[str, Any]:
    return {"active_units": 4, "mu_min": -1.0, "mu_max": 1.0, "trust": trust}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trust")
    vae, code = linear(), replace(linear(seed=4), family="autoencoder")
    near = diagnostics(standard=FINE, fitted=None, interpolate=FINE)
    far = diagnostics(standard=FAR, fitted=FINE, interpolate=FAR)
    coded = diagnostics(standard=None, fitted=FAR, interpolate=FAR)
    write_linear(folder / "near", vae, diagnostics=near)
    write_linear(folder / "far", vae, fitted=fitted_prior(), diagnostics=far)
    write_linear(folder / "code", code, fitted=fitted_prior(), diagnostics=coded)
    write_linear(folder / "unmeasured", vae, fitted=fitted_prior())
    return folder


@pytest.fixture(scope="module")
def http(folder: Path) -> Iterator[httpx.Client]:
    folders = [str(folder / name) for name in ("near", "far", "code", "unmeasured")]
    with serving(folders) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        yield client


def ok(answer: httpx.Response) -> httpx.Response:
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize(
    ("name", "standard", "fitted", "interpolate"),
    [
        ("near", FINE, {"trusted": None, "reason": "There is no fitted prior."}, FINE),
        ("far", FAR, FINE, FAR),
        ("code", {"trusted": None, "reason": "An autoencoder knows no N(0, I)."}, FAR, FAR),
        ("unmeasured", *[{"trusted": None, "reason": "Not measured."}] * 3),
    ],
)
def test_a_model_says_what_of_it_is_to_be_trusted_and_why(
    http: httpx.Client, name: str, standard: object, fitted: object, interpolate: object
) -> None:
    trust = http.get(f"/models/{name}").json()["trust"]
    assert trust == {"sample": {"standard": standard, "fitted": fitted}, "interpolate": interpolate}


@pytest.mark.parametrize(
    ("url", "warning"),
    [
        ("/sample?model=far&seed=1", SAMPLES),
        ("/sample?model=far", SAMPLES),
        ("/sample?model=code&seed=1", SAMPLES),  # its prior is the fitted one, unasked
        ("/interpolate?model=far&seeds=1,2", BETWEEN),
        ("/interpolate?model=code&seeds=1,2", BETWEEN),
    ],
)
def test_an_answer_that_is_not_to_be_trusted_says_so_in_a_header_and_in_json(
    http: httpx.Client, url: str, warning: dict[str, str]
) -> None:
    said = f"{warning['type']};detail={QUOTED}"
    for form in ("png", "webp", "safetensors"):
        assert ok(http.get(f"{url}&format={form}")).headers["x-warnings"] == said
    answer = ok(http.get(f"{url}&format=json"))
    assert answer.headers["x-warnings"] == said
    assert answer.json()["warnings"] == [warning]
    path, _, query = url.partition("?")
    posted = ok(http.post(path, params=httpx.QueryParams(query).set("format", "json")))
    assert (posted.headers["x-warnings"], posted.json()["warnings"]) == (said, [warning])


@pytest.mark.parametrize(
    "url",
    [
        "/sample?model=near&seed=1",
        "/sample?model=far&seed=1&prior=fitted",
        "/sample?model=unmeasured&seed=1",
        "/sample?model=unmeasured&seed=1&prior=fitted",
        "/interpolate?model=near&seeds=1,2",
        "/interpolate?model=unmeasured&seeds=1,2",
        "/traverse?model=far&seed=1",
    ],
)
def test_an_answer_that_nothing_speaks_against_says_nothing(http: httpx.Client, url: str) -> None:
    answer = ok(http.get(f"{url}&format=json"))
    assert "x-warnings" not in answer.headers
    assert "warnings" not in answer.json()


def test_a_warning_changes_no_picture_and_no_latent(http: httpx.Client) -> None:
    for url in ("/sample?seed=3&n=3", "/interpolate?seeds=3,4"):
        far, near = (
            read_tensors(ok(http.get(f"{url}&model={name}", headers={"accept": SAFETENSORS})).content)
            for name in ("far", "near")
        )
        for name in ("images", "z"):
            np.testing.assert_array_equal(far[name], near[name])


def test_a_cache_is_warned_too(http: httpx.Client) -> None:
    for url in ("/sample?model=far&seed=1", "/interpolate?model=far&seeds=1,2"):
        first = ok(http.get(url))
        again = http.get(url, headers={"if-none-match": first.headers["etag"]})
        assert again.status_code == 304
        assert again.headers["x-warnings"] == first.headers["x-warnings"]


def test_an_answer_with_another_warning_has_another_etag(tmp_path: Path) -> None:
    etags = []
    for verdict in (FINE, FAR, FAR | {"reason": "Elsewhere."}):
        write_linear(
            folder := tmp_path / str(len(etags)),
            linear(),
            name="one",
            diagnostics=diagnostics(standard=verdict, fitted=None, interpolate=None),
        )
        with serving([str(folder)]) as running:
            answer = ok(httpx.get(f"{running.url}/sample?seed=1&format=json"))
            etags.append(answer.headers["etag"])
            digest = answer.json()["digest"]
        assert digest == answer.headers["x-model"].partition("@")[2]
    assert len(set(etags)) == 3


@pytest.mark.parametrize("reason", ["two\r\nlines", "", "naïve", "x" * 1001])
def test_a_reason_that_no_header_can_carry_stops_the_start(folder: Path, tmp_path: Path, reason: str) -> None:
    write_linear(place := tmp_path / "b", linear(), diagnostics=diagnostics(standard=FAR, fitted=None, interpolate=FAR))
    edit_manifest(place, lambda plain: plain["diagnostics"]["trust"]["standard"].update(reason=reason))
    said = stopped(str(place))
    expected = f"{place / MANIFEST}: diagnostics.trust.standard.reason is {reason!r:.200}, string should match"
    assert said.startswith(expected), said


def test_openapi_tells_of_warnings_where_there_may_be_any(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    warned = {
        path
        for path, item in document["paths"].items()
        for operation in item.values()
        if "X-Warnings" in operation["responses"]["200"].get("headers", {})
    }
    assert warned == {"/sample", "/interpolate"}
    warning = document["components"]["schemas"]["WarningAnswer"]["properties"]
    assert warning["type"]["enum"] == [SAMPLES["type"], BETWEEN["type"]]


def test_the_header_is_a_list_as_rfc_9651_has_it(http: httpx.Client) -> None:
    said = http.get("/sample?model=far&seed=1").headers["x-warnings"]
    kind, detail = re.fullmatch(r'([a-z][a-z0-9-]*);detail="((?:[ !#-\[\]-~]|\\["\\])*)"', said).groups()
    assert kind == "untrusted-samples"
    assert re.sub(r"\\(.)", r"\1", detail) == FAR["reason"]
