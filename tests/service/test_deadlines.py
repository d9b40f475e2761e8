"""A request is answered by its deadline, with 504 if need be, and what it asked for is dropped."""

import asyncio
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.requests import Request

from service import budget, images, payload, rendering
from service.app import create_app
from service.settings import Settings
from tests.service.conftest import Bundles
from tests.service.linear import Linear, open_linear, write_linear
from tests.service.wire import pixels, png
from tests.serving import in_process
from tests.waiting import until


def problem(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["type"] == f"urn:vaeserve:problem:{kind}"
    return document


class Held:
    """An application whose decoder waits for the test."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.gate, self.started, self.ran = threading.Event(), threading.Event(), list[int]()
        model = app.state.deployment.models.default
        self.model, run = model, model.decoder.run

        def waiting(rows: np.ndarray) -> Any:
            self.ran.append(len(rows))
            self.started.set()
            assert self.gate.wait(20)
            return run(rows)

        model.decoder.run = waiting

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app)
        return httpx.AsyncClient(transport=transport, base_url="http://here", timeout=30)


@pytest.mark.parametrize("timeout_ms", [1, 120], ids=["before it is listened to", "while it is listened to"])
def test_504_comes_at_the_deadline_in_the_queue_and_in_the_run(app: FastAPI, timeout_ms: int) -> None:
    held = Held(app)

    async def scenario() -> None:
        async with held.client() as http:
            patient = asyncio.create_task(http.get("/sample?seed=1"))
            await asyncio.to_thread(held.started.wait, 20)
            late = {"x-timeout-ms": str(timeout_ms)}
            queued = await http.get("/sample?n=3", headers=late)
            document = problem(queued, 504, "deadline-passed")
            assert document["detail"] == f"deadline: {timeout_ms} ms passed before the answer could be made"
            held.gate.set()
            assert (await patient).status_code == 200
            held.gate.clear()
            held.started.clear()
            running = await http.get("/sample?n=2", headers=late)
            problem(running, 504, "deadline-passed")
            held.gate.set()
            assert (await http.get("/sample?n=4")).status_code == 200
        assert app.state.deployment.lane._admitted_rows == 0  # noqa: SLF001

    asyncio.run(scenario())
    # Of a millisecond so little may be left, on a slow machine, that the rows never come to run.
    assert held.ran in ([[1, 2, 4], [1, 4]] if timeout_ms == 1 else [[1, 2, 4]])


def test_the_server_has_a_deadline_of_its_own_and_a_bound_on_others(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.lane.loop_budget_us", lambda _cores: -1.0)
    settings = Settings(bundles=(bundles.colour,), timeout_ms=40, max_timeout_ms=70)
    held = Held(create_app(settings, cores=1))

    async def scenario() -> None:
        async with held.client() as http:
            own = await http.get("/sample")
            bounded = [
                await http.get("/sample", headers={"x-timeout-ms": sent})
                for sent in ("999999999999", "9007199254740991", "9" * 5000, "00071")
            ]
            held.gate.set()
        assert "40 ms" in problem(own, 504, "deadline-passed")["detail"]
        assert all("70 ms" in problem(answer, 504, "deadline-passed")["detail"] for answer in bounded)

    asyncio.run(scenario())


@pytest.mark.parametrize("sent", ["0", "-5", "1.5", "soon", "", "٣", "000", "0" * 99])
def test_a_timeout_that_is_no_number_of_milliseconds_is_422(client: httpx.Client, sent: str) -> None:
    answer = client.get("/sample", headers=[(b"x-timeout-ms", sent.encode())])
    document = problem(answer, 422, "invalid")
    assert document["errors"][0]["where"] == "X-Timeout-Ms"
    assert document["errors"][0]["expected"] == "a whole number of milliseconds, at least 1"


def test_a_request_within_its_time_is_answered(client: httpx.Client, colour: Linear) -> None:
    image = pixels(1, colour.shape)
    headers = {"x-timeout-ms": "20000", "content-type": "image/png"}
    assert client.post("/encode", content=png(image[0]), headers=headers).status_code == 200


# Pictures that are to be decoded


def transparent(n: int) -> list[tuple[str, bytes]]:
    """Files that Pillow's own reader is needed for."""
    file = BytesIO()
    Image.new("RGBA", (40, 30), (10, 20, 30, 40)).save(file, "PNG")
    return [("images", file.getvalue())] * n


def decoding(app: FastAPI, n: int, *, timeout_ms: int) -> httpx.Response:
    async def scenario() -> httpx.Response:
        async with in_process(app) as client:
            return await client.post("/encode", files=transparent(n), headers={"x-timeout-ms": str(timeout_ms)})

    return asyncio.run(scenario())


def test_a_picture_is_let_go_before_the_next_one_is_decoded(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pixels are many more than its bytes and than its row, and a request may bring thousands."""
    decoded: list[weakref.ref[Image.Image]] = []
    upright = images._upright  # noqa: SLF001

    def watched(picture: Image.Image) -> Image.Image:
        assert [earlier() for earlier in decoded] == [None] * len(decoded)
        decoded.append(weakref.ref(picture))
        return upright(picture)

    monkeypatch.setattr(images, "_upright", watched)
    assert decoding(app, 4, timeout_ms=20_000).status_code == 200
    assert len(decoded) == 4


def test_no_picture_is_decoded_once_the_time_is_over(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Image.Image] = []
    upright = images._upright  # noqa: SLF001

    def slowly(picture: Image.Image) -> Image.Image:
        decoded.append(picture)
        time.sleep(0.1)
        return upright(picture)

    monkeypatch.setattr(images, "_upright", slowly)
    problem(decoding(app, 8, timeout_ms=150), 504, "deadline-passed")
    assert len(decoded) < 8


def test_what_waits_for_a_thread_is_not_begun_once_the_time_is_over(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a large answer to be written, while others are."""
    gate = threading.Event()
    with ThreadPoolExecutor(1) as busy:
        busy.submit(gate.wait, 20)
        monkeypatch.setattr(budget, "_threads", busy)
        monkeypatch.setattr(rendering, "render", lambda *_args, **_options: pytest.fail("it was begun"))

        async def scenario() -> httpx.Response:
            async with in_process(app) as client:
                asking = asyncio.create_task(
                    client.get("/sample?seed=1&scale=32&format=webp", headers={"x-timeout-ms": "200"})
                )
                await asyncio.sleep(0.4)
                assert (await client.get("/metrics")).status_code == 200, "which waits for none of them"
                assert asking.done(), "the answer does not wait for a thread to come free"
                gate.set()
                return await asking

        problem(asyncio.run(scenario()), 504, "deadline-passed")


def alpha(width: int, height: int = 30, *, colour: tuple[int, int, int, int] = (10, 20, 30, 40)) -> bytes:
    """A file that Pillow's own reader is needed for."""
    file = BytesIO()
    Image.new("RGBA", (width, height), colour).save(file, "PNG")
    return file.getvalue()


async def encoded(client: httpx.AsyncClient, *files: bytes) -> httpx.Response:
    return await client.post("/encode", files=[("images", file) for file in files])


def held_back(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, list[int]]:
    """What lets Pillow's pictures be decoded, and the widths of those that have begun to be."""
    gate, begun = threading.Event(), list[int]()
    upright = images._upright  # noqa: SLF001

    def held(picture: Image.Image) -> Image.Image:
        begun.append(picture.width)
        assert gate.wait(20)
        return upright(picture)

    monkeypatch.setattr(images, "_upright", held)
    return gate, begun


def test_requests_of_many_pictures_and_of_few_take_turns(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, widths = held_back(monkeypatch)

    async def scenario() -> list[httpx.Response]:
        async with in_process(app) as client:
            many = asyncio.create_task(
                encoded(client, *[alpha(40)] * 7)
            )  # and one more are what the queue has room for
            await asyncio.to_thread(until, lambda: widths)
            few = asyncio.create_task(encoded(client, alpha(50)))
            for _ in range(20):  # until the other one stands in line
                await asyncio.sleep(0.01)
            gate.set()
            return [await few, await many]

    with ThreadPoolExecutor(1) as only:
        monkeypatch.setattr(budget, "_threads", only)
        assert [answer.status_code for answer in asyncio.run(scenario())] == [200, 200]
    assert widths.index(50) < 4
    assert widths.count(40) == 7


def test_large_pictures_are_decoded_as_there_is_room_for_their_pixels(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload, "_LARGE_PIXELS", 40 * 30)
    app = create_app(Settings(bundles=(bundles.colour,), max_picture_pixels=2_000))
    both = threading.Barrier(2)
    upright, met = images._upright, list[bool]()  # noqa: SLF001

    def meeting(picture: Image.Image) -> Image.Image:
        try:
            both.wait(2)
            met.append(True)
        except threading.BrokenBarrierError:
            both.reset()
            met.append(False)
        return upright(picture)

    monkeypatch.setattr(images, "_upright", meeting)

    async def scenario(width: int) -> set[bool]:
        met.clear()
        async with in_process(app) as client:
            answers = await asyncio.gather(*(encoded(client, alpha(width)) for _ in range(2)))
        assert all(answer.status_code == 200 for answer in answers)
        return set(met)

    with ThreadPoolExecutor(2) as several:
        monkeypatch.setattr(budget, "_threads", several)
        assert asyncio.run(scenario(40)) == {True}
        assert asyncio.run(scenario(41)) == {False}


def test_a_picture_has_its_room_until_it_is_decoded_though_nobody_waits_for_it(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload, "_LARGE_PIXELS", 1)
    app = create_app(Settings(bundles=(bundles.colour,), max_picture_pixels=2_000))
    gate, begun = held_back(monkeypatch)

    async def scenario() -> None:
        async with in_process(app) as client:
            hurry = {"x-timeout-ms": "300"}
            late = [await client.post("/encode", files=[("images", alpha(40))], headers=hurry) for _ in range(2)]
            for answer in late:
                problem(answer, 504, "deadline-passed")
            assert begun == [40], "the second one had no room"
            gate.set()
            assert (await encoded(client, alpha(50))).status_code == 200
            assert begun == [40, 50]

    with ThreadPoolExecutor(4) as several:
        monkeypatch.setattr(budget, "_threads", several)
        asyncio.run(scenario())


def test_nothing_more_is_decoded_for_a_caller_who_has_left(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = list[int]()
    upright = images._upright  # noqa: SLF001

    def watched(picture: Image.Image) -> Image.Image:
        widths.append(picture.width)
        return upright(picture)

    monkeypatch.setattr(images, "_upright", watched)

    async def has_left(_request: Request) -> bool:
        return len(widths) == 2

    monkeypatch.setattr(Request, "is_disconnected", has_left)

    async def scenario() -> None:
        async with in_process(app) as client:
            with pytest.raises(AssertionError):  # httpx gets no answer
                await encoded(client, *[alpha(40)] * 8)

    asyncio.run(scenario())
    assert len(widths) == 2


def test_pictures_that_are_decoded_apart_are_rows_in_their_order(app: FastAPI) -> None:
    colours = [(9 * i, 200 - 9 * i, 5 * i, 255) for i in range(12)]
    plain = [png(pixels(1, (6, 5, 3))[0] // (i + 1)) for i in range(12)]
    files = [file for i, colour in enumerate(colours) for file in (alpha(40, colour=colour), plain[i])]

    async def scenario() -> None:
        async with in_process(app) as client:
            together = (await encoded(client, *files)).json()["mu"]
            alone = [(await encoded(client, file)).json()["mu"][0] for file in files]
            np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)

    asyncio.run(scenario())


def test_a_caller_who_left_while_it_waited_for_room_gets_no_thread(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload, "_LARGE_PIXELS", 40 * 30 - 1)
    gate, widths = held_back(monkeypatch)
    app = create_app(Settings(bundles=(bundles.colour,), max_picture_pixels=2_000))

    async def scenario() -> None:
        async with in_process(app) as client:
            first = asyncio.create_task(encoded(client, alpha(40)))
            await asyncio.to_thread(until, lambda: widths)
            monkeypatch.setattr(Request, "is_disconnected", _gone)
            second = asyncio.create_task(encoded(client, alpha(41)))
            for _ in range(20):  # until it stands in line
                await asyncio.sleep(0.01)
            gate.set()
            assert (await first).status_code == 200
            await asyncio.gather(second, return_exceptions=True)
            monkeypatch.undo()
            assert (await encoded(client, alpha(42))).status_code == 200

    asyncio.run(scenario())
    assert widths == [40]


async def _gone(_request: Request) -> bool:
    return True


def test_long_animations_keep_no_picture_from_being_read(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, render = threading.Event(), rendering.render
    begun = threading.Event()

    def held(*args: Any, **options: Any) -> bytes:
        begun.set()
        assert gate.wait(20)
        return render(*args, **options)

    monkeypatch.setattr(rendering, "render", held)

    async def scenario() -> None:
        async with in_process(app) as client:
            path = "/interpolate?seeds=1,2&steps=4&scale=32&format=gif"
            animations = [asyncio.create_task(client.get(path, headers={"x-timeout-ms": "5000"})) for _ in range(2)]
            await asyncio.to_thread(begun.wait, 20)
            assert (await encoded(client, alpha(40))).status_code == 200
            assert not any(animation.done() for animation in animations)
            gate.set()
            assert [(await animation).status_code for animation in animations] == [200, 200]

    with ThreadPoolExecutor(1) as only, ThreadPoolExecutor(1) as only_long:
        monkeypatch.setattr(budget, "_threads", only)
        monkeypatch.setattr(budget, "_long_threads", only_long)
        asyncio.run(scenario())


def test_all_pictures_of_a_request_together_have_a_bound_but_plain_ones_which_cost_little(bundles: Bundles) -> None:
    app = create_app(Settings(bundles=(bundles.colour,), max_picture_pixels=1200))

    async def scenario() -> None:
        async with in_process(app) as client:
            assert (await encoded(client, *[alpha(40)] * 16)).status_code == 200
            document = problem(await encoded(client, *[alpha(40)] * 17), 413, "too-large")
            assert document["detail"] == "pictures: got 20,400 pixels, the limit is 19,200"
            plain = png(np.zeros((30, 40, 3), np.uint8))
            assert (await encoded(client, *[plain] * 17)).status_code == 200

    asyncio.run(scenario())


def test_pictures_of_other_sizes_are_found_apart_too(tmp_path: Path) -> None:
    write_linear(tmp_path / "open", open_linear())
    app = create_app(Settings(bundles=(tmp_path / "open",)))

    async def scenario() -> None:
        async with in_process(app) as client:
            assert (await encoded(client, alpha(16, 16), alpha(16, 16))).status_code == 200
            document = problem(await encoded(client, alpha(16, 16), alpha(16, 16), alpha(20, 16)), 422, "invalid")
            told = "form.images[2]: got height 16, width 20, expected height 16, width 16 as form.images[0]"
            assert document["detail"] == told

    asyncio.run(scenario())


def test_of_pictures_that_are_decoded_apart_the_one_that_differs_from_the_first_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload, "_SHARE_US", 50.0)  # of which each of these takes 23 to 25
    usual, wide = png(np.zeros((16, 16, 3), np.uint8)), png(np.zeros((16, 20, 3), np.uint8))
    write_linear(tmp_path / "open", open_linear())
    app = create_app(Settings(bundles=(tmp_path / "open",)))

    async def scenario() -> None:
        async with in_process(app) as client:
            document = problem(await encoded(client, usual, usual, wide, usual), 422, "invalid")
            told = "form.images[2]: got height 16, width 20, expected height 16, width 16 as form.images[0]"
            assert document["detail"] == told

    asyncio.run(scenario())


def test_no_memory_for_a_picture_is_no_fault_of_the_picture(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_picture: Image.Image) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr(images, "_upright", failing)

    async def scenario() -> None:
        async with in_process(app) as client:
            document = problem(await encoded(client, alpha(40)), 503, "out-of-memory")
            assert document["detail"] == "form.images[0]: there is no memory for the picture now"

    asyncio.run(scenario())
