"""Hostile clients: many who drip a head or a body byte by byte, and some who send what is hard to digest."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import cycle
from time import perf_counter

from benchmarks.connections import Unanswered, connect
from benchmarks.servers import HOST

DRIP_EVERY_S = 0.1
_ANSWERED_WITHIN_S = 30.0

_JSON = b"Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
_DRIPPED = {
    "dripped head": b"GET /sample?seed=1 HTTP/1.1\r\nHost: h\r\nX: ",
    "dripped body": b"POST /decode HTTP/1.1\r\nHost: h\r\n" + _JSON,
}


@dataclass(frozen=True)
class Met:
    """What hostile clients got, how often, and the names of the bombs that were answered or closed upon."""

    times: Counter[str] = field(default_factory=Counter)
    sent: set[str] = field(default_factory=set)


def attack(port: int, bombs: Mapping[str, bytes], *, seconds: float, drippers: int, bombs_per_s: float) -> Met:
    """What hostile clients got in so long: so many who drip of either kind, and the bombs in turn."""
    return asyncio.run(_attack(port, bombs, seconds=seconds, drippers=drippers, bombs_per_s=bombs_per_s))


async def _attack(port: int, bombs: Mapping[str, bytes], *, seconds: float, drippers: int, bombs_per_s: float) -> Met:
    met = Met()
    tasks = [
        asyncio.create_task(_drip(port, what, first, met=met, after_s=DRIP_EVERY_S * place / drippers))
        for place in range(drippers)
        for what, first in _DRIPPED.items()
    ]
    tasks.append(asyncio.create_task(_bomb(port, bombs, met=met, per_s=bombs_per_s)))
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    for error in ends:
        if isinstance(error, BaseException) and not isinstance(error, asyncio.CancelledError):
            raise error
    return met


async def _drip(port: int, what: str, first: bytes, *, met: Met, after_s: float) -> None:
    await asyncio.sleep(after_s)
    while True:
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(first)
        said = asyncio.ensure_future(reader.read())
        try:
            while not said.done():
                writer.write(b"y")
                await asyncio.wait({said}, timeout=DRIP_EVERY_S)
            met.times[f"{what}: {said.result()[9:12].decode() or 'closed'}"] += 1
        except ConnectionError:
            met.times[f"{what}: closed"] += 1
        finally:
            said.cancel()
            writer.close()


async def _bomb(port: int, bombs: Mapping[str, bytes], *, met: Met, per_s: float) -> None:
    for name, bomb in cycle(bombs.items()):
        next_at = perf_counter() + 1 / per_s
        connection = await connect(port)
        try:
            async with asyncio.timeout(_ANSWERED_WITHIN_S):
                met.times[f"bomb: {(await connection.ask(bomb)).status}"] += 1
        except Unanswered:
            met.times["bomb: closed"] += 1
        finally:
            connection.close()
        met.sent.add(name)
        await asyncio.sleep(max(0.0, next_at - perf_counter()))
