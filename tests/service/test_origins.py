"""Pages of other sites (CORS): what a browser is told, and that it is told nothing where nothing is set."""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service.access.keys import Scope
from service.app import create_app
from service.settings import Settings
from tests.service.keyring import bearer, lines, tokens, write
from tests.service.linear import Bundles
from tests.service.test_errors import problem
from tests.serving import in_process, stopped

HERE = "https://gallery.example.org"
EXPECTED = "expected origins as https://example.org or http://localhost:3000, or *"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}


def asked(
    settings: Settings, path: str, *, origin: str | None = HERE, method: str = "GET", headers: Mapping[str, str] = {}
) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with in_process(create_app(settings, cores=1)) as client:
            sent = {**headers, **({"origin": origin} if origin else {})}
            return await client.request(method, path, headers=sent)

    return asyncio.run(ask())


def told(answer: httpx.Response) -> set[str]:
    return {name for name in answer.headers if name.startswith("access-control-")}


@pytest.fixture
def settings(bundles: Bundles) -> Settings:
    return Settings(bundles=(bundles.colour,), cors_origins=(HERE, "http://localhost:3000"))


@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
def test_where_nothing_is_set_browsers_are_told_nothing(client: httpx.Client, method: str) -> None:
    answer = client.request(method, "/sample?seed=1", headers={"origin": HERE, **PREFLIGHT})
    assert answer.status_code == (405 if method == "OPTIONS" else 200)
    assert told(answer) == set()
    assert "Origin" not in answer.headers.get_list("vary")


@pytest.mark.parametrize("origin", [HERE, "http://localhost:3000"])
@pytest.mark.parametrize(("path", "status"), [("/sample?seed=1", 200), ("/sample?n=0", 422), ("/nothing", 404)])
def test_a_page_that_may_ask_reads_answers_and_problems(
    settings: Settings, origin: str, path: str, status: int
) -> None:
    answer = asked(settings, path, origin=origin)
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == origin
    assert "Origin" in answer.headers.get_list("vary")
    shown = answer.headers["access-control-expose-headers"].split(", ")
    assert {"x-model", "x-seed", "x-dims", "x-request-id", "x-warnings", "retry-after", "etag"} <= set(shown)
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"), [((HERE,), HERE, [HERE]), ((HERE,), "null", []), (("*",), HERE, ["*"])]
)
def test_a_page_that_may_ask_reads_that_the_service_failed(
    bundles: Bundles, origins: tuple[str, ...], origin: str, allowed: list[str]
) -> None:
    def broken(_rows: object) -> Any:
        raise RuntimeError("broken")

    app = create_app(Settings(bundles=(bundles.colour,), cors_origins=origins), cores=1)
    app.state.deployment.models.default.decoder.run = broken

    async def ask() -> httpx.Response:
        async with in_process(app) as client:
            return await client.get("/sample?seed=1", headers={"origin": origin})

    answer = asyncio.run(ask())
    problem(answer, 500, "internal")
    assert answer.headers.get_list("access-control-allow-origin") == allowed
    assert ("access-control-expose-headers" in answer.headers) == bool(allowed)
    assert answer.headers.get_list("vary") == ([] if origins == ("*",) else ["Origin"])
    assert len(answer.headers.get_list("x-request-id")) == 1


@pytest.mark.parametrize("origin", ["https://example.org", f"{HERE}:444", HERE.upper(), "null", "", None])
def test_a_page_from_elsewhere_is_told_nothing_and_caches_know_that_it_hangs_on_who_asks(
    settings: Settings, origin: str | None
) -> None:
    answer = asked(settings, "/sample?seed=1", origin=origin)
    assert answer.status_code == 200
    assert told(answer) == set()
    assert "Origin" in answer.headers.get_list("vary")


def test_what_a_browser_asks_ahead_is_answered_without_a_key(bundles: Bundles, tmp_path: Path) -> None:
    held = tokens("page")
    keys = write(tmp_path / "keys.toml", lines(held, scopes=(Scope.READ,)))
    settings = Settings(bundles=(bundles.colour,), cors_origins=(HERE,), api_keys_file=keys)
    ahead = asked(settings, "/encode", method="OPTIONS", headers=PREFLIGHT)
    assert (ahead.status_code, ahead.content) == (204, b"")
    assert ahead.headers["access-control-allow-origin"] == HERE
    assert ahead.headers["access-control-allow-methods"] == "GET, HEAD, POST"
    assert {"authorization", "content-type", "x-timeout-ms"} <= set(
        ahead.headers["access-control-allow-headers"].split(", ")
    )
    assert ahead.headers["access-control-max-age"] == "600"
    assert "x-request-id" in ahead.headers
    # The request itself shows its key, and a refusal can be read.
    refused = asked(settings, "/sample?seed=1")
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, HERE)
    assert asked(settings, "/sample?seed=1", headers=bearer(held["page"])).status_code == 200
    # From elsewhere it is a request like any other.
    assert (
        asked(settings, "/encode", method="OPTIONS", origin="https://example.org", headers=PREFLIGHT).status_code == 401
    )


def test_options_that_no_browser_asks_ahead_are_the_applications(settings: Settings) -> None:
    assert asked(settings, "/encode", method="OPTIONS").status_code == 405


@pytest.mark.parametrize("origin", [HERE, "null", None])
def test_a_star_lets_every_page_ask(bundles: Bundles, origin: str | None) -> None:
    answer = asked(Settings(bundles=(bundles.colour,), cors_origins=("*",)), "/sample?seed=1", origin=origin)
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "Origin" not in answer.headers.get_list("vary")


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/", "https://Example.org", "https://a b", ""])
def test_what_no_browser_sends_is_no_origin(origin: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(f"{EXPECTED}, not {origin!r}")):
        Settings(cors_origins=(HERE, origin))


def test_what_is_no_origin_refuses_the_start() -> None:
    said = stopped("--cors-origins", "https://example.org/")
    assert said == f"cors_origins: got ['https://example.org/'], {EXPECTED}, not 'https://example.org/'"
