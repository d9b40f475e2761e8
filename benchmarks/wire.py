"""What large requests and answers take: their encoding beside orjson alone, how long others wait for them, and the
memory of 10,000 pictures in one request.

Run as `python -m benchmarks.wire`.
"""

import asyncio
from argparse import ArgumentParser
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import orjson
from fastapi import FastAPI
from numpy.typing import NDArray
from safetensors.numpy import load, save
from starlette.requests import Request as Received
from starlette.types import Message, Scope

from benchmarks import raw, results
from benchmarks.requests import SAFETENSORS
from benchmarks.servers import Request, Server, running, serve_command
from benchmarks.subjects import Subject, subject
from service import answers, bodies, intake, payload, tensors
from service.app import create_app
from service.batcher import Done
from service.bodies import Body
from service.call import Call
from service.forms import Form
from service.observation.record import Record
from service.routes import latents
from service.schemas import EncodeOptions
from service.settings import Settings

ROWS, LATENT_DIM = 1_000, 128
BULK_ROWS = 10_000
RUN_ROWS = 32
LIMITS = {
    "--workers": 1,
    "--max-body-bytes": 2 * 10**8,
    "--max-request-rows": 2 * BULK_ROWS,
    "--max-queue-rows": 2 * BULK_ROWS,
}

BULKS = (("/encode", Form.SAFETENSORS), ("/encode", Form.JSON), ("/reconstruct", Form.SAFETENSORS))

Work = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Answer:
    """An answer, from arrays to its last message, and orjson.dumps of the same arrays in turn with it.

    Units:  milliseconds; waited_ms the longest that another task waited for its turn meanwhile, in the quietest round
    """

    what: str
    ms: float
    orjson_ms: float
    to_orjson: float
    waited_ms: float


@dataclass(frozen=True)
class Cost:
    """Work whose cost is stated before it is done, so that what is long goes to a thread."""

    what: str
    us: float
    stated_us: float


@dataclass(frozen=True)
class Bulk:
    """One request of very many pictures to a server that has just started.

    Units:  10⁶ bytes; grown_mb at its peak over what it held before
    """

    what: str
    body_mb: float
    answer_mb: float
    grown_mb: float
    to_wire: float
    seconds: float
    largest_difference: float


def main() -> None:
    """Measure, print tables, keep the figures as JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="times that each answer is made (default 30)")
    arguments = parser.parse_args()
    medium = subject("medium")
    app = create_app(Settings(bundles=(medium.bundle,), device="cpu"))
    made = [asyncio.run(_answer(app, *case, arguments.rounds)) for case in _answers()]
    costs = _costs(app, arguments.rounds)
    bulks = [_bulk(medium, path, form) for path, form in BULKS]
    _report(made, costs, bulks)


def _report(made: Sequence[Answer], costs: Sequence[Cost], bulks: Sequence[Bulk]) -> None:
    print(f"mu and logvar of {LATENT_DIM} latents, from arrays to the last message; {results.on_machine()}\n")
    print(
        results.table(
            ("answer", ": orjson.dumps", "ms", "orjson.dumps, ms", "others wait, ms"),
            [(a.what, f"{a.to_orjson:.2f}", f"{a.ms:.2f}", f"{a.orjson_ms:.2f}", f"{a.waited_ms:.2f}") for a in made],
        )
    )
    print(f"\nWhat the event loop reckons with, {ROWS:,} rows each\n")
    rows = [(cost.what, f"{cost.us:,.0f}", f"{cost.stated_us:,.0f}") for cost in costs]
    print(results.table(("work", "µs", "stated µs"), rows))
    print(f"\n{BULK_ROWS:,} pictures of 64×64×3 in one safetensors request\n")
    print(
        results.table(
            ("request", "memory grown : body + answer", "MB grown", "MB body", "MB answer", "s", "largest difference"),
            [
                (
                    bulk.what,
                    f"{bulk.to_wire:.2f}",
                    f"{bulk.grown_mb:.0f}",
                    f"{bulk.body_mb:.0f}",
                    f"{bulk.answer_mb:.0f}",
                    f"{bulk.seconds:.1f}",
                    f"{bulk.largest_difference:.2g}",
                )
                for bulk in bulks
            ],
        )
    )
    content = {
        "answers": [asdict(answer) for answer in made],
        "costs": [asdict(cost) for cost in costs],
        "bulk": [asdict(bulk) for bulk in bulks],
    }
    print("\n" + results.keep("wire", content))


# Answers


def _answers() -> list[tuple[str, Form, int, str]]:
    return [
        ("JSON", Form.JSON, ROWS, "float32"),
        ("JSON, dtype=float16", Form.JSON, ROWS, "float16"),
        ("safetensors", Form.SAFETENSORS, ROWS, "float32"),
        ("safetensors, dtype=float16", Form.SAFETENSORS, ROWS, "float16"),
        ("JSON", Form.JSON, BULK_ROWS, "float32"),
        ("safetensors", Form.SAFETENSORS, BULK_ROWS, "float32"),
    ]


async def _answer(app: FastAPI, what: str, form: Form, rows: int, dtype: str, rounds: int) -> Answer:
    mu, logvar = np.random.default_rng(0).standard_normal((2, rows, LATENT_DIM), dtype=np.float32)
    call = await _call(app, form)
    done = Done((mu, logvar), queued_at=0, started_at=0, ended_at=0, run_s=0, batch_rows=rows)

    async def ours() -> None:
        named = {"mu": mu, "logvar": logvar}
        response = await answers.numbers(call, named, runs=(done,), decoded_at=call.began, dtype=dtype)
        await response(call.request.scope, call.request.receive, _send)

    rounded = {"mu": mu.astype(dtype), "logvar": logvar.astype(dtype)}

    async def orjsons() -> None:
        orjson.dumps(rounded, option=orjson.OPT_SERIALIZE_NUMPY)

    ours_ms: list[float] = []
    orjson_ms: list[float] = []
    sides = [(ours, ours_ms), (orjsons, orjson_ms)]
    for work, _ in sides:
        await work()
    for _ in range(rounds):
        for work, taken_ms in sides:
            began = perf_counter()
            await work()
            taken_ms.append(1000 * (perf_counter() - began))
        sides.reverse()
    return Answer(
        what=f"{what}, {rows:,} rows",
        ms=round(median(ours_ms), 3),
        orjson_ms=round(median(orjson_ms), 3),
        to_orjson=round(median(ours / theirs for ours, theirs in zip(ours_ms, orjson_ms, strict=True)), 3),
        waited_ms=round(await _waited_ms(ours, rounds), 3),
    )


async def _call(app: FastAPI, form: Form) -> Call[EncodeOptions]:
    """A request to /encode, read."""
    return await intake.read(Received(_scope(app, form), _receive), latents.ENCODE)


def _scope(app: FastAPI, form: Form) -> Scope:
    return {
        "type": "http",
        "method": "POST",
        "path": "/encode",
        "query_string": f"format={form.label}".encode(),
        "headers": [],
        "app": app,
        "state": {"record": Record("", began=perf_counter())},
    }


async def _receive() -> Message:
    return {"type": "http.request"}


async def _send(_message: Message) -> None:
    pass


async def _waited_ms(work: Work, rounds: int) -> float:
    """The longest that a task which gives up every turn waited for its next one meanwhile, in the quietest round."""
    longest = []
    for _ in range(rounds):
        task = asyncio.ensure_future(work())
        waits, turn = [], perf_counter()
        while not task.done():
            await asyncio.sleep(0)
            now = perf_counter()
            waits.append(1000 * (now - turn))
            turn = now
        longest.append(max(waits))
    return min(longest)


# Stated costs


def _costs(app: FastAPI, rounds: int) -> list[Cost]:
    mu, z = np.random.default_rng(0).standard_normal((2, ROWS, LATENT_DIM), dtype=np.float32)
    text = orjson.dumps({"z": z}, option=orjson.OPT_SERIALIZE_NUMPY)
    nested = orjson.loads(text)["z"]
    call = asyncio.run(_call(app, Form.JSON))
    bodies_of = {
        name: save({name: rows}) for name, rows in (("z", z), ("images", np.zeros((ROWS, 64, 64, 3), np.uint8)))
    }
    cases: list[tuple[str, Callable[[], object], float]] = [
        ("JSON of z, read", lambda: orjson.loads(text), bodies.JSON_BYTE_US * len(text)),
        (
            "z as nested lists",
            lambda: payload.as_latents(call, nested, where="z"),
            payload.nested_cost_us(Body(json_bytes=len(text))),
        ),
        ("z as a tensor", lambda: payload.as_latents(call, z, where="z"), payload.TENSOR_NUMBER_US * z.size),
        ("mu, rounded to float16", lambda: mu.astype(np.float16), answers.CONVERTED_NUMBER_US * mu.size),
        ("safetensors of z, read", lambda: tensors.read(bodies_of["z"]), tensors.reading_cost_us(bodies_of["z"])),
        (
            "safetensors of pictures, read",
            lambda: tensors.read(bodies_of["images"]),
            tensors.reading_cost_us(bodies_of["images"]),
        ),
    ]
    return [Cost(what, round(_us(work, rounds), 1), round(stated, 1)) for what, work, stated in cases]


def _us(work: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        began = perf_counter()
        work()
        taken.append(1e6 * (perf_counter() - began))
    return median(taken)


# Bulk


def _bulk(medium: Subject, path: str, form: Form) -> Bulk:
    """The growth of a server's memory while it answers one request, and what it answered beside onnxruntime's own."""
    images = np.random.default_rng(0).integers(0, 256, (BULK_ROWS, *medium.images.shape[1:]), dtype=np.uint8)
    one, many = (
        Request(f"{path}?format={form.label}", SAFETENSORS, save({"images": rows})) for rows in (images[:1], images)
    )
    with running(serve_command(medium.bundle, *[str(word) for limit in LIMITS.items() for word in limit])) as server:
        server.answer(one)
        before_mb = _status_mb(server, "VmRSS")
        began = perf_counter()
        answer = server.answer(many)
        seconds = perf_counter() - began
        grown_mb = _status_mb(server, "VmHWM") - before_mb
    wire_mb = (len(many.body) + len(answer)) / 1e6
    return Bulk(
        what=f"{path}, {form.label}",
        body_mb=round(len(many.body) / 1e6, 1),
        answer_mb=round(len(answer) / 1e6, 1),
        grown_mb=round(grown_mb, 1),
        to_wire=round(grown_mb / wire_mb, 3),
        seconds=round(seconds, 2),
        largest_difference=_difference(
            medium, path, images, orjson.loads(answer) if form is Form.JSON else load(answer)
        ),
    )


def _status_mb(server: Server, field: str) -> float:
    """A field of /proc/PID/status (proc_pid_status(5)), in 10⁶ bytes; with one worker there is one process."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024 / 1e6


def _difference(medium: Subject, path: str, images: NDArray[np.uint8], found: Mapping[str, Any]) -> float:
    """The largest difference from what onnxruntime alone makes of the same pictures: of mu and logvar, or of pictures
    in grey levels.
    """
    encoder, decoder = (
        raw.session(medium.bundle, graph, threads=raw.CORES, spinning=False) for graph in ("encoder", "decoder")
    )
    largest = 0.0
    for start in range(0, len(images), RUN_ROWS):
        rows = slice(start, start + RUN_ROWS)
        mu, logvar = encoder.run(["mu", "logvar"], {"image": images[rows]})
        if path == "/encode":
            expected = {"mu": mu, "logvar": logvar}
        else:
            expected = {"images": decoder.run(["image"], {"z": mu})[0]}
        for name, values in expected.items():
            # JSON's numbers are those of their own dtype.
            apart = np.abs(np.asarray(found[name][rows], values.dtype).astype(np.float64) - values).max()
            largest = float(np.maximum(largest, apart))  # NaN, where one is
    return largest


if __name__ == "__main__":
    main()
