"""A thousand callers who leave, hang up half-way and run out of time: an answer holds the rows of who gets it."""

import asyncio
import json
import resource
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.service.linear import Linear, write_linear
from tests.service.wire import SAFETENSORS, base64_png, from_json, read_tensors, tensors
from tests.serving import Server, serving

CALLERS = 1000
CALLS = 6  # of each, one after the other
SEED = 20261121
JSON = "application/json"
Arrays = Mapping[str, NDArray[Any]]

# Longer than the whole test takes, by much: no time of it is what the test is about.
PATIENCE_S = 120


class Leaves(Enum):
    """When a caller hangs up."""

    NEVER = "never"
    SENDING = "with half of its body sent"
    WAITING = "before its answer"
    READING = "with some of its answer read"


@dataclass(frozen=True)
class Call:
    """One request: its bytes, whose rows they are, and what its caller does meanwhile."""

    request_id: str
    model: str
    head: bytes
    body: bytes
    read: Callable[[bytes], Arrays]
    expected: Arrays
    timeout_ms: int | None
    leaves: Leaves
    stays_s: float


def selecting(shape: tuple[int, int, int], seed: int) -> Linear:
    """mu is the pixels, logvar the pixels in another order, a picture the latent in that order: sums of one term each,
    which come out to the last bit whatever runs beside them.
    """
    pixels = int(np.prod(shape))
    order = np.random.default_rng(seed).permutation(pixels)
    one = np.eye(pixels, dtype=np.float32)
    return Linear(shape, (pixels,), a=one, b=one[order], d=one[order])


@pytest.fixture(scope="module")
def models() -> dict[str, Linear]:
    """`quick` costs so little that it runs on the event loop, `wide` runs in threads."""
    return {"quick": selecting((8, 8, 1), seed=0), "wide": selecting((28, 28, 1), seed=1)}


@pytest.fixture(scope="module")
def files() -> Iterator[None]:
    """As many open files as two thousand connections take, for this process and for those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard < 8192 else max(soft, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def server(files: None, models: dict[str, Linear], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Runs so long that deadlines and departures fall into them, and a queue that has no room for all callers."""
    folder = tmp_path_factory.mktemp("selecting")
    for name, model in models.items():
        write_linear(folder / name, model)
    limits = ["--max-connections", "4000", "--max-batch-rows", "128", "--max-queue-rows", "1600"]
    with serving([*(str(folder / name) for name in models), *limits]) as running:
        yield running


def calls_of(caller: int, models: dict[str, Linear]) -> list[Call]:
    """What one caller asks; its rows are no other's."""
    generator = np.random.default_rng((SEED, caller))
    return [_call(f"{caller}-{index}", models, generator) for index in range(CALLS)]


def _call(request_id: str, models: dict[str, Linear], generator: np.random.Generator) -> Call:
    name = str(generator.choice(list(models)))
    model, n = models[name], int(generator.integers(1, 6))
    verb, media_type = str(generator.choice(["encode", "decode"])), str(generator.choice([JSON, SAFETENSORS]))
    body, expected = (_encode if verb == "encode" else _decode)(model, n, media_type, generator)
    timeout_ms = int(generator.integers(1, 400)) if generator.random() < 0.25 else None
    leaves = Leaves.NEVER if generator.random() < 0.8 else Leaves(generator.choice([each.value for each in Leaves]))
    lines = [
        f"POST /{verb}?model={name} HTTP/1.1",
        "Host: here",
        f"Content-Type: {media_type}",
        f"Accept: {media_type}",
        f"Content-Length: {len(body)}",
        f"X-Request-ID: {request_id}",
        *([f"X-Timeout-Ms: {timeout_ms}"] if timeout_ms else []),
    ]
    return Call(
        request_id=request_id,
        model=name,
        head="\r\n".join([*lines, "", ""]).encode(),
        body=body,
        read=read_tensors if media_type == SAFETENSORS else _numbers if verb == "encode" else _pictures,
        expected=expected,
        timeout_ms=timeout_ms,
        leaves=leaves,
        stays_s=float(generator.uniform(0, 0.3)),
    )


def _encode(model: Linear, n: int, media_type: str, generator: np.random.Generator) -> tuple[bytes, Arrays]:
    image = 255 * generator.integers(0, 2, (n, *model.shape), dtype=np.uint8)  # black and white are exact, no two alike
    mu, logvar = model.encode(image)
    as_json = {"images": [base64_png(row) for row in image]}
    body = tensors(images=image) if media_type == SAFETENSORS else json.dumps(as_json).encode()
    return body, {"mu": mu, "logvar": logvar}


def _decode(model: Linear, n: int, media_type: str, generator: np.random.Generator) -> tuple[bytes, Arrays]:
    z = generator.uniform(-0.5, 0.5, (n, *model.latent_shape)).astype(np.float32)
    body = tensors(z=z) if media_type == SAFETENSORS else json.dumps({"z": z.tolist()}).encode()
    return body, {"images": model.decode(z), "z": z}


def _numbers(content: bytes) -> Arrays:
    document = json.loads(content)
    return {name: np.array(document[name], np.float32) for name in ("mu", "logvar")}


def _pictures(content: bytes) -> Arrays:
    document = json.loads(content)
    return {"images": from_json(document["images"], channels=1), "z": np.array(document["z"], np.float32)}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Caller:
    """Who asks on one connection, until leaving it for a new one."""

    def __init__(self, url: httpx.URL, calls: list[Call]) -> None:
        self._url, self._calls = url, calls
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._url.host, self._url.port)

    async def ask_all(self) -> list[tuple[Call, Answer | None]]:
        """What came of each call, nothing where it was left. Looked into later, so that no connection is long idle."""
        try:
            return [(call, await self._ask(call)) for call in self._calls]
        finally:
            self._writer.transport.abort()

    async def _ask(self, call: Call) -> Answer | None:
        answer = await self._send_and_wait(call)
        if answer is None:
            self._writer.transport.abort()
            await self.connect()
        return answer

    async def _send_and_wait(self, call: Call) -> Answer | None:
        is_cut = call.leaves is Leaves.SENDING
        self._writer.write(call.head + (call.body[: len(call.body) // 2] if is_cut else call.body))
        await self._writer.drain()
        if call.leaves in {Leaves.SENDING, Leaves.WAITING}:
            await asyncio.sleep(call.stays_s)
            return None
        if call.leaves is Leaves.READING:
            await self._reader.readexactly(100)
            return None
        return await self._answer()

    async def _answer(self) -> Answer:
        status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await self._reader.readexactly(int(headers["content-length"]))
        return Answer(int(status.split()[1]), headers, body)


def assert_is_own(answer: Answer, call: Call) -> None:
    """An answer of 200 holds the rows of its call, to the last bit; another one is a refusal that the call allows."""
    assert answer.headers["x-request-id"] == call.request_id
    if answer.status == 200:
        assert answer.headers["x-model"].partition("@")[0] == call.model
        found = call.read(answer.body)
        for name, rows in call.expected.items():
            assert found[name].dtype == rows.dtype
            assert found[name].shape == rows.shape
            assert found[name].tobytes() == rows.tobytes(), f"{call.request_id}: {name} is not what was sent"
        return
    kind = json.loads(answer.body)["type"]
    assert (answer.status, kind) in {
        (429, "urn:vaeserve:problem:queue-full"),
        (504, "urn:vaeserve:problem:deadline-passed"),
    }
    assert answer.status == 429 or call.timeout_ms is not None


def test_a_thousand_callers_who_leave_and_run_out_of_time_get_nobody_elses_rows(
    server: Server, models: dict[str, Linear]
) -> None:
    callers = [Caller(httpx.URL(server.url), calls_of(caller, models)) for caller in range(CALLERS)]

    async def together() -> list[list[tuple[Call, Answer | None]]]:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(caller.connect() for caller in callers))
            return await asyncio.gather(*(caller.ask_all() for caller in callers))

    ends: Counter[int | Leaves] = Counter()
    for call, answer in chain.from_iterable(asyncio.run(together())):
        if answer is not None:
            assert_is_own(answer, call)
        ends[call.leaves if answer is None else answer.status] += 1
    assert ends.total() == CALLERS * CALLS
    assert {Leaves.SENDING, Leaves.WAITING, Leaves.READING} <= set(ends)
    assert ends[200] > CALLERS * CALLS // 4  # too few answers would tell little of whose rows they hold
