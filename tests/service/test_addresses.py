"""A GET with a seed has an address: validators, 304 without the engine, and how long a cache may keep it."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service import addresses
from service.app import create_app
from service.prior import StandardPrior
from service.settings import Settings
from tests.service.linear import Bundles, linear, write_linear
from tests.serving import in_process

SEEDED = ["/sample?seed=7&n=3", "/interpolate?seeds=3,14"]


def etag(client: httpx.Client, path: str, **request: Any) -> str:
    answer = client.get(path, **request)
    assert answer.status_code == 200, answer.text
    tag = answer.headers["etag"]
    assert tag.startswith('"')
    assert tag.endswith('"')
    return tag


@pytest.mark.parametrize("path", SEEDED)
def test_a_cache_asks_before_it_shows_again(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.headers["cache-control"] == "no-cache"
    assert client.get(path).headers["etag"] == answer.headers["etag"]


@pytest.mark.parametrize("path", SEEDED)
def test_an_option_may_be_a_number_of_any_size(client: httpx.Client, path: str) -> None:
    answer = client.get(f"{path}&columns={2**64}")
    assert answer.status_code == 200
    assert answer.content == client.get(f"{path}&columns=12").content
    assert answer.headers["etag"] != etag(client, f"{path}&columns=12")


@pytest.mark.parametrize("path", SEEDED)
def test_an_answer_that_is_held_is_not_sent_again(client: httpx.Client, path: str) -> None:
    first = client.get(path)
    again = client.get(path, headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304
    assert again.content == b""
    # RFC 9110, 15.4.5: what the 200 would have said of caching and choice
    for name in ("etag", "cache-control", "vary", "x-model"):
        assert again.headers[name] == first.headers[name]
    assert "x-request-id" in again.headers
    assert "server-timing" not in again.headers


def test_a_tag_differs_with_all_that_an_answers_bytes_hang_on(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(Settings(bundles=(bundles.colour,)))
    engine = app.state.deployment.models.default.engine

    async def tag() -> str:
        async with in_process(app) as http:
            return (await http.get(SEEDED[0])).headers["etag"]

    tags = [asyncio.run(tag()), asyncio.run(tag())]
    assert tags[0] == tags[1]
    for place, name in ((addresses, "_VERSION"), (engine.encoder, "provider"), (engine, "precision")):
        with monkeypatch.context() as patched:
            patched.setattr(place, name, "another")
            tags.append(asyncio.run(tag()))
    assert len(set(tags)) == 4


def test_a_tag_differs_between_names_of_one_model(tmp_path: Path) -> None:
    """JSON tells the name, which the digest leaves out."""

    async def tag(name: str) -> str:
        write_linear(tmp_path / name, linear())
        async with in_process(create_app(Settings(bundles=(tmp_path / name,)))) as http:
            return (await http.get("/sample?seed=7&format=json")).headers["etag"]

    assert asyncio.run(tag("one")) != asyncio.run(tag("other"))


@pytest.mark.parametrize("path", SEEDED)
def test_an_answer_that_is_held_or_finds_no_room_draws_nothing(
    bundles: Bundles, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(Settings(bundles=(bundles.colour,)))

    async def scenario() -> None:
        async with in_process(app) as http:
            tag = (await http.get(path)).headers["etag"]
            monkeypatch.setattr(StandardPrior, "sample", lambda *_args, **_options: pytest.fail("it was drawn"))
            assert (await http.get(path, headers={"if-none-match": tag})).status_code == 304
            with app.state.deployment.lane.admit(app.state.deployment.settings.max_queue_rows):
                assert (await http.get(path)).status_code == 429

    asyncio.run(scenario())


@pytest.mark.parametrize("sent", ["{tag}", "W/{tag}", '"other", {tag}', '"a",W/{tag} , "b"', "*"])
def test_a_tag_is_found_in_a_list_weak_or_starred(client: httpx.Client, sent: str) -> None:
    tag = etag(client, SEEDED[0])
    answer = client.get(SEEDED[0], headers={"if-none-match": sent.format(tag=tag)})
    assert answer.status_code == 304


def test_a_tag_is_found_on_a_second_line(client: httpx.Client) -> None:
    """Source: RFC 9110, section 5.3"""
    lines = [("if-none-match", '"other"'), ("if-none-match", etag(client, SEEDED[0]))]
    assert client.get(SEEDED[0], headers=lines).status_code == 304


def test_a_form_is_accepted_on_a_second_line(client: httpx.Client) -> None:
    lines = [("accept", "text/html"), ("accept", "application/json")]
    answer = client.get(SEEDED[0], headers=lines)
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("sent", ['"other"', "", 'W/"other", "another"', "{bare}"])
def test_a_tag_that_is_not_held_gets_the_answer(client: httpx.Client, sent: str) -> None:
    bare = etag(client, SEEDED[0]).strip('"')
    answer = client.get(SEEDED[0], headers={"if-none-match": sent.format(bare=bare)})
    assert answer.status_code == 200
    assert answer.content


@pytest.mark.parametrize("path", SEEDED)
def test_what_is_held_never_touches_the_engine(app: FastAPI, path: str) -> None:
    def broken(_rows: object) -> Any:
        raise RuntimeError("the engine was touched")

    async def scenario() -> None:
        async with in_process(app) as client:
            tag = (await client.get(path)).headers["etag"]
            model = app.state.deployment.models.default
            model.encoder.run = model.decoder.run = broken
            assert (await client.get(path, headers={"if-none-match": tag})).status_code == 304
            assert (await client.get(path)).status_code == 500

    asyncio.run(scenario())


@pytest.mark.parametrize("path", SEEDED)
def test_an_address_that_pins_the_digest_may_be_kept_for_ever(client: httpx.Client, path: str) -> None:
    label = client.get(path).headers["x-model"]
    answer = client.get(f"{path}&model={label}")
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["etag"] == etag(client, path)


def test_an_address_that_names_the_model_alone_is_asked_for_again(client: httpx.Client) -> None:
    assert client.get(f"{SEEDED[0]}&model=colour").headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("digest", ["", "0", "0" * 64])
def test_an_address_that_pins_another_digest_is_not_found_and_never_kept(client: httpx.Client, digest: str) -> None:
    answer = client.get(f"{SEEDED[0]}&model=colour@{digest}")
    assert answer.status_code == 404
    assert "immutable" not in answer.headers.get("cache-control", "")


def test_without_a_seed_nothing_is_stored(client: httpx.Client) -> None:
    answer = client.get("/sample", headers={"if-none-match": "*"})
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert "etag" not in answer.headers


@pytest.mark.parametrize(("path", "body"), [("/sample", {"seed": 7}), ("/interpolate", {"seeds": [3, 14]})])
def test_a_post_has_no_address(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    answer = client.post(path, json=body, headers={"if-none-match": "*"})
    assert answer.status_code == 200
    assert not {"etag", "cache-control"} & answer.headers.keys()


@pytest.mark.parametrize("path", [*SEEDED, "/sample", "/health/live", "/models"])
def test_head_is_get_without_its_body(client: httpx.Client, path: str) -> None:
    got, headed = client.get(path), client.head(path)
    assert headed.status_code == got.status_code == 200
    assert headed.content == b""
    names = {"content-type", "etag", "cache-control", "vary", "x-model"}
    assert {name: headed.headers.get(name) for name in names} == {name: got.headers.get(name) for name in names}
    if path in SEEDED:
        assert headed.headers["content-length"] == str(len(got.content))


@pytest.mark.parametrize("path", SEEDED)
def test_head_is_answered_from_a_tag_too(client: httpx.Client, path: str) -> None:
    answer = client.head(path, headers={"if-none-match": etag(client, path)})
    assert answer.status_code == 304


def test_the_tag_differs_by_every_option(client: httpx.Client) -> None:
    paths = [
        "/sample?seed=7", "/sample?seed=8", "/sample?seed=7&n=2", "/sample?seed=7&temperature=0.5",
        "/sample?seed=7&scale=2", "/sample?seed=7&columns=2", "/sample?seed=7&quality=80", "/sample?seed=7&model=grey",
        "/interpolate?seeds=7,8", "/interpolate?seeds=8,7", "/interpolate?seeds=7,8&steps=5",
        "/interpolate?seeds=7,8&method=slerp", "/interpolate?seeds=7,8&loop=true", "/interpolate?seeds=7,8&frame_ms=50",
    ]  # fmt: skip
    assert len({etag(client, path) for path in paths}) == len(paths)


def test_the_tag_differs_by_form_however_it_was_chosen(client: httpx.Client) -> None:
    labels = ["png", "webp", "jpeg", "json", "safetensors", "gif", "apng"]
    tags = {label: etag(client, f"/interpolate?seeds=3,14&format={label}") for label in labels}
    assert len(set(tags.values())) == len(labels)
    assert etag(client, "/interpolate?seeds=3,14") == tags["png"]
    assert etag(client, "/interpolate?seeds=3,14", headers={"accept": "image/webp"}) == tags["webp"]


def test_the_tag_is_the_same_for_the_same_answer_spelt_otherwise(client: httpx.Client) -> None:
    tags = {
        etag(client, path)
        for path in (
            "/sample?seed=7&n=1", "/sample?n=1&seed=7", "/sample?seed=7", "/sample?seed=07&temperature=1.0",
            "/sample?seed=7&model=colour", "/sample?seed=7&format=png",
        )
    }  # fmt: skip
    assert len(tags) == 1


def test_one_tag_stands_for_one_sequence_of_bytes(client: httpx.Client) -> None:
    answers = [client.get("/sample?seed=7&n=20&format=safetensors") for _ in range(5)]
    assert len({(answer.headers["etag"], answer.content) for answer in answers}) == 1


def test_what_cannot_be_is_no_304(client: httpx.Client) -> None:
    assert client.get("/sample?seed=7&n=0", headers={"if-none-match": "*"}).status_code == 422
    assert client.get("/sample?seed=7&model=none", headers={"if-none-match": "*"}).status_code == 404
