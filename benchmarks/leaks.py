"""What very many requests of all verbs and forms leave behind: errors, memory, file descriptors, threads.

Run as `python -m benchmarks.leaks [--requests 200000] [--workers 2]`. The first tenth warms the server up, over more
connections, so that pools of threads fill; what it holds is looked at after every hundredth, when nothing is under way.
"""

import asyncio
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from statistics import median
from time import perf_counter

import uvloop

from benchmarks import claims, results, subjects
from benchmarks.claims import Claim
from benchmarks.connections import Connection, Unanswered, connect
from benchmarks.mixture import Asked, mixture
from benchmarks.servers import Server, running, serve_command
from benchmarks.subjects import Subject

CONNECTIONS, WARM_CONNECTIONS = 16, 64
VARIANTS = 16
SLICES, WARM = 100, 10


def main() -> None:
    """Measure, print tables, keep the figures as JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200_000, help="default 200,000")
    parser.add_argument("--workers", type=int, default=2, help="default 2")
    arguments = parser.parse_args()
    if arguments.requests < SLICES:
        parser.error(f"--requests: got {arguments.requests}, expected at least {SLICES}, one for each look")
    found = measure(subjects.subject("fashion"), count=arguments.requests, workers=arguments.workers)
    _report(found, workers=arguments.workers)


@dataclass(frozen=True)
class Held:
    """What a server holds at a moment, all its processes together.

    Units:  resident memory in 10⁶ bytes
    """

    resident_mb: float
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Left:
    """What became of the requests, and what the server held after each hundredth of them."""

    kinds: int
    requests: int
    seconds: float
    errors: dict[str, int]
    """How often, by what was asked for and what came."""
    held: tuple[Held, ...]

    @property
    def growth(self) -> float:
        """Resident memory in the last tenth to that just after the first."""
        return median(held.resident_mb for held in self.held[-WARM:]) / self.warm_mb

    @property
    def warm_mb(self) -> float:
        """Resident memory just after the first tenth."""
        return median(held.resident_mb for held in self.held[WARM : 2 * WARM])


def measure(subject: Subject, *, count: int, workers: int, variants: int = VARIANTS) -> Left:
    """What so many requests leave behind in a server that is started for them."""
    with running(serve_command(subject.bundle, "--workers", str(workers))) as server:
        server.settle()
        asked = mixture(server, subject, variants=variants)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_measured(server, asked, count=count))


async def _measured(server: Server, asked: Sequence[Asked], *, count: int) -> Left:
    errors: Counter[str] = Counter()
    endless, held, began = cycle(asked), list[Held](), perf_counter()
    for connections, slices in ((WARM_CONNECTIONS, WARM), (CONNECTIONS, SLICES - WARM)):
        opened = [await connect(server.port) for _ in range(connections)]
        for _ in range(slices):
            some = islice(endless, count // SLICES)
            async with asyncio.TaskGroup() as tasks:
                for connection in opened:
                    tasks.create_task(_ask(connection, some, errors))
            held.append(Held(round(server.resident_mb(), 1), server.descriptors(), server.threads()))
        for connection in opened:
            connection.close()
    seconds = perf_counter() - began
    return Left(len(asked), count // SLICES * SLICES, round(seconds, 1), dict(errors), tuple(held))


async def _ask(connection: Connection, asked: Iterator[Asked], errors: Counter[str]) -> None:
    for each in asked:
        line = each.request.partition(b"\r\n")[0].decode()
        try:
            answer = await connection.ask(each.request)
        except Unanswered as unanswered:
            errors[f"{line}: {unanswered}"] += 1
            return
        if not each.is_answered_by(answer):
            errors[f"{line}: {answer.status} {answer.header('content-type')}"] += 1


def claimed(found: Left) -> list[Claim]:
    """What must hold."""
    warm, last = found.held[WARM : 2 * WARM], found.held[-WARM:]
    descriptors, threads = (
        [max(getattr(held, name) for held in tenth) for tenth in (warm, last)] for name in ("descriptors", "threads")
    )
    grown = f"{found.growth * found.warm_mb:.1f} : {found.warm_mb:.1f} MB"
    asked = f"{found.requests:,} requests of {found.kinds:,} kinds in {found.seconds:,.0f} s"
    return [
        Claim("errors", "≤", 0, sum(found.errors.values()), asked),
        Claim("resident memory, last tenth : after the first", "≤", 1.05, found.growth, grown, must_hold=True),
        Claim("more file descriptors than when warm", "≤", 0, descriptors[1] - descriptors[0],
              f"{descriptors[1]} : {descriptors[0]}"),
        Claim("more threads than when warm", "≤", 0, threads[1] - threads[0], f"{threads[1]} : {threads[0]}"),
    ]  # fmt: skip


def _report(found: Left, *, workers: int) -> None:
    held = claimed(found)
    print(f"fashion, {workers} workers, {CONNECTIONS} connections; {results.on_machine()}\n")
    print(claims.table(held) + "\n")
    tenths = range(WARM - 1, SLICES, WARM)
    rows = [
        ("resident MB", *(f"{found.held[place].resident_mb:.0f}" for place in tenths)),
        ("file descriptors", *(str(found.held[place].descriptors) for place in tenths)),
        ("threads", *(str(found.held[place].threads) for place in tenths)),
    ]
    print(results.table(("after", *(f"{(place + 1) * found.requests // SLICES:,}" for place in tenths)), rows))
    content = {"claims": claims.as_json(held), "workers": workers, **asdict(found)}
    print("\n" + results.keep("leaks", content))
    for error, times in found.errors.items():
        print(f"{error}: {times} times")
    claims.require(held)


if __name__ == "__main__":
    main()
