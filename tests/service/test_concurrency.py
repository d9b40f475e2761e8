"""Many callers at once, each with rows of its own: nobody gets another's, and nobody's answer depends on the others."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

from service import call
from service.app import create_app
from service.latents import path, prior_sample
from service.settings import Settings
from tests.service.linear import Bundles, Linear
from tests.service.test_errors import problem
from tests.service.wire import (
    SAFETENSORS,
    assert_near,
    base64_png,
    form,
    latents,
    pixels,
    png,
    read_tensors,
    tensors,
)
from tests.serving import in_process

BINARY = {"content-type": SAFETENSORS, "accept": SAFETENSORS}


def test_sixty_four_callers_with_a_picture_each_get_their_own(server_url: str, colour: Linear) -> None:
    image = pixels(64, colour.shape)

    async def ask(http: httpx.AsyncClient, row: np.ndarray) -> Any:
        answer = await http.post("/encode", content=png(row), headers={"content-type": "image/png"})
        return answer.json()["mu"][0]

    async def together() -> list[Any]:
        async with httpx.AsyncClient(base_url=server_url, timeout=30) as http:
            return await asyncio.gather(*(ask(http, row) for row in image))

    np.testing.assert_allclose(asyncio.run(together()), colour.encode(image)[0], atol=1e-5)


def test_callers_of_all_verbs_models_and_sizes_get_their_own(server_url: str, colour: Linear, grey: Linear) -> None:
    """Two hundred requests that differ in verb, model, form, body and number of rows, all at once."""
    models = {"colour": colour, "grey": grey}

    async def encode(http: httpx.AsyncClient, name: str, n: int, seed: int) -> None:
        image = pixels(n, models[name].shape, seed)
        body = {"images": [base64_png(row) for row in image]}
        asked: dict[str, Any] = {"json": body} if seed % 2 else {"files": form(image)}
        document = (await http.post(f"/encode?model={name}", **asked)).json()
        np.testing.assert_allclose(document["mu"], models[name].encode(image)[0], atol=1e-5)

    async def decode(http: httpx.AsyncClient, name: str, n: int, seed: int) -> None:
        z = latents(n, models[name].latent_shape, seed)
        answer = await http.post(f"/decode?model={name}", content=tensors(z=z), headers=BINARY)
        assert_near(read_tensors(answer.content)["images"], models[name].decode(z))

    async def sample(http: httpx.AsyncClient, name: str, n: int, seed: int) -> None:
        answer = await http.get(f"/sample?model={name}&n={n}&seed={seed}", headers=BINARY)
        z = prior_sample(seed, n=n, latent_shape=models[name].latent_shape)
        assert_near(read_tensors(answer.content)["images"], models[name].decode(z))

    async def interpolate(http: httpx.AsyncClient, name: str, n: int, seed: int) -> None:
        image = pixels(2, models[name].shape, seed)
        url = f"/interpolate?model={name}&steps={n + 1}"
        answer = await http.post(url, content=tensors(images=image), headers=BINARY)
        named = read_tensors(answer.content)
        walked = path(models[name].encode(image)[0], steps=n + 1, method="linear", loop=False)
        np.testing.assert_allclose(named["z"], walked, atol=1e-5)
        assert_near(named["images"], models[name].decode(named["z"]))

    async def together() -> None:
        sizes = np.random.default_rng(0).integers(1, 40, 200).tolist()
        verbs = (encode, decode, sample, interpolate)
        async with httpx.AsyncClient(base_url=server_url, timeout=60) as http:
            calls = (
                verbs[index % 4](http, ("colour", "grey")[index // 4 % 2], n, 1000 + index)
                for index, n in enumerate(sizes)
            )
            await asyncio.gather(*calls)

    asyncio.run(together())


def test_identical_requests_give_identical_bytes_while_others_run(server_url: str, colour: Linear) -> None:
    image = pixels(3, colour.shape)
    asked: list[dict[str, Any]] = [
        {"method": "GET", "url": "/sample?seed=5&n=7"},
        {"method": "GET", "url": "/sample?seed=5&n=7&format=json"},
        {"method": "GET", "url": "/interpolate?seeds=1,2&format=webp"},
        {"method": "POST", "url": "/encode?draws=2&seed=3", "files": form(image)},
        {"method": "POST", "url": "/decode?format=safetensors", "json": {"z": latents(3, (4,)).tolist()}},
    ]

    async def together() -> tuple[list[bytes], list[list[bytes]]]:
        async with httpx.AsyncClient(base_url=server_url, timeout=60) as http:
            alone = [(await http.request(**request)).content for request in asked]
            noise = [http.get(f"/sample?n={1 + index % 30}&seed={index}") for index in range(60)]
            busy = [[http.request(**request) for request in asked] for _ in range(8)]
            answers = await asyncio.gather(*noise, *(call for calls in busy for call in calls))
            assert {answer.status_code for answer in answers} == {200}
            contents = [answer.content for answer in answers[len(noise) :]]
            return alone, [contents[start : start + len(asked)] for start in range(0, len(contents), len(asked))]

    alone, busy = asyncio.run(together())
    for contents in busy:
        assert contents == alone


def test_concurrent_rows_share_a_batch(app: FastAPI) -> None:
    """The engine waits for the test; what arrives meanwhile runs together, and the answers say so."""
    gate, started = threading.Event(), threading.Event()
    model = app.state.deployment.models.default
    run = model.decoder.run

    def waiting(rows: np.ndarray) -> Any:
        started.set()
        assert gate.wait(20)
        return run(rows)

    async def scenario(url: str) -> None:
        model.decoder.run = waiting
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            first = asyncio.create_task(http.get("/sample?seed=1"))
            await asyncio.to_thread(started.wait, 20)
            others = [asyncio.create_task(http.get(f"/sample?seed={seed}")) for seed in range(4)]
            await until(lambda: app.state.deployment.lane._admitted_rows == 5)  # noqa: SLF001
            gate.set()
            assert 'batch;desc="1 rows"' in (await first).headers["server-timing"]
            for other in others:
                assert 'batch;desc="4 rows"' in (await other).headers["server-timing"]

    asyncio.run(over_a_socket(app, scenario))


def test_pixels_bound_the_runs_of_every_model(bundles: Bundles) -> None:
    """Three rows of 6 × 5 pixels hold 90; a row of 28 × 28 is over the budget and runs alone."""
    app = create_app(Settings(bundles=(bundles.colour, bundles.grey), max_batch_rows=8, max_run_pixels=100))
    ran: dict[str, list[int]] = {"colour": [], "grey": []}

    def recording(name: str, run: Any) -> Any:
        def record(*inputs: np.ndarray) -> Any:
            ran[name].append(len(inputs[0]))
            return run(*inputs)

        return record

    async def scenario() -> None:
        for model in app.state.deployment.models:
            model.decoder.run = recording(model.manifest.name, model.decoder.run)
        async with in_process(app) as http:
            assert (await http.get("/sample?n=7&model=colour")).status_code == 200
            assert (await http.get("/sample?n=2&model=grey")).status_code == 200

    asyncio.run(scenario())
    assert ran == {"colour": [3, 3, 1], "grey": [1, 1]}


def test_a_caller_who_leaves_gives_back_its_room_and_its_rows(app: FastAPI) -> None:
    gate, started = threading.Event(), threading.Event()
    model, lane = app.state.deployment.models.default, app.state.deployment.lane
    run, ran = model.decoder.run, []

    def waiting(rows: np.ndarray) -> Any:
        ran.append(len(rows))
        started.set()
        assert gate.wait(20)
        return run(rows)

    async def scenario(url: str) -> None:
        model.decoder.run = waiting
        host, port = httpx.URL(url).host, httpx.URL(url).port
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            stays = asyncio.create_task(http.get("/sample?seed=1"))
            await asyncio.to_thread(started.wait, 20)
            _, leaving = await asyncio.open_connection(host, port)
            leaving.write(b"GET /sample?n=7 HTTP/1.1\r\nHost: here\r\n\r\n")
            await leaving.drain()
            await until(lambda: lane._admitted_rows == 8)  # noqa: SLF001
            leaving.close()
            await leaving.wait_closed()
            await until(lambda: lane._admitted_rows == 1)  # noqa: SLF001
            gate.set()
            assert (await stays).status_code == 200
            assert (await http.get("/sample?n=3")).status_code == 200

    asyncio.run(over_a_socket(app, scenario))
    assert ran == [1, 3]


@pytest.mark.parametrize("form", ["png", "webp", "gif", "json"])
def test_a_large_answer_is_written_once_there_is_room_for_it_and_small_ones_meanwhile(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(call, "_LARGE_ANSWER_PIXELS", 400)
    room = app.state.deployment.answer_room

    async def scenario() -> None:
        async with in_process(app) as http:
            taken = await room.take(app.state.deployment.settings.max_answer_pixels)
            large = asyncio.create_task(http.get(f"/interpolate?seeds=1,2&steps=2&scale=4&format={form}"))
            await until(lambda: room._waiting)  # noqa: SLF001
            assert (await http.get("/sample?scale=2")).status_code == 200
            assert not large.done()
            room.give(taken)
            assert (await large).status_code == 200
            assert room._left == taken  # noqa: SLF001

    asyncio.run(scenario())


def test_bodies_hold_room_until_they_are_answered(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven of the largest leave too little for one more."""
    monkeypatch.setattr(call, "_LARGE_ANSWER_PIXELS", 1)
    largest = 4000
    app = create_app(Settings(bundles=(bundles.colour,), max_body_bytes=largest), cores=1)
    room = app.state.deployment.answer_room
    body = b'{"z": [1, 2, 3, 4]}'.ljust(largest)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, largest, 1000):
            yield body[start : start + 1000]

    async def scenario() -> None:
        async with in_process(app) as http:

            def decode() -> Coroutine[Any, Any, httpx.Response]:
                return http.post("/decode", content=pieces(), headers={"content-type": "application/json"})

            taken = await room.take(app.state.deployment.settings.max_answer_pixels)
            waiting = [asyncio.create_task(decode()) for _ in range(7)]
            await until(lambda: len(room._waiting) == 7)  # noqa: SLF001
            document = problem(await decode(), 429, "queue-full")
            expected = "expected at most 2,000 bytes while 28,000 bytes of others are read and answered"
            assert document["detail"] == f"body: got 3,000 bytes, {expected}"
            room.give(taken)
            assert [(await each).status_code for each in waiting] == [200] * 7
            assert [(await decode()).status_code for _ in range(9)] == [200] * 9

    asyncio.run(scenario())


async def until(true: Any) -> None:
    """Wait for what must become true; a test that waits for ever fails."""
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110  other tasks and threads make it true
            await asyncio.sleep(0.005)


async def over_a_socket(app: FastAPI, scenario: Any) -> None:
    """A scenario with an application of this process on a real socket, so that the test can hold its engine."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    serving = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        await scenario(f"http://{host}:{port}")
    finally:
        server.should_exit = True
        await serving
