"""Several times more requests than `vae-serve` can answer: what it still answers, how it refuses, and whether it stays
in good health.

Run as `python -m benchmarks.overload [--model slow medium] [--seconds 60]`. Requests of one row each arrive on schedule
from a process of its own. Capacity is what the same process gets answered before and after, with as many requests
under way as the queue has rows. What a refusal costs is measured apart (`benchmarks/refusals.py`).
"""

from argparse import ArgumentParser
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from http.client import HTTPConnection
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from time import perf_counter, sleep

from benchmarks import claims, requests, results, subjects
from benchmarks.arrivals import Arrived, in_turn, on_schedule
from benchmarks.claims import Claim
from benchmarks.connections import as_bytes
from benchmarks.refusals import refused
from benchmarks.servers import HOST, Server, running, serve_command

QUEUE_ROWS = 64
CONNECTIONS = 192  # idle ones answer refusals while as many as the queue has rows wait for their answers
TICK_S = 0.004  # a generator that woke up for each request would take away the cores that the service is measured on
REFUSED_AT_A_TIME = 16  # where there is nothing but refusals, so that they follow each other closely
PROBE_EVERY_S, PROBES = 0.05, ("/health/live", "/health/ready")
WEIGH_EVERY = 20  # probes


@dataclass(frozen=True)
class Case:
    """How much more than its capacity a model is asked for, and how much of that it must still answer."""

    times: float
    goodput: float


CASES = {"slow": Case(times=10, goodput=0.95), "medium": Case(times=3, goodput=0.85)}


def main() -> None:
    """Measure, print tables, keep the figures as JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="+", choices=tuple(CASES), default=tuple(CASES), help="default slow medium")
    parser.add_argument("--seconds", type=float, default=60, help="length of the overload (default 60)")
    arguments = parser.parse_args()
    held = []
    for name in arguments.model:
        subject, case = subjects.subject(name), CASES[name]
        sent = [as_bytes(request) for request in requests.encode(subject)]
        found = measure(subject.bundle, sent, times=case.times, seconds=arguments.seconds)
        _report(name, case, found)
        held += claimed(found, case)
    claims.require(held)


@dataclass(frozen=True)
class Watched:
    """What a second connection saw meanwhile.

    Units:  health_ms milliseconds of each answer; resident_mb 10⁶ bytes, about once a second
    """

    health_ms: tuple[float, ...]
    not_healthy: int
    resident_mb: tuple[float, ...]


@dataclass(frozen=True)
class Overload:
    """What a server did at its capacity, before and after it was asked for more, and what refusing takes.

    Units:  resident_mb 10⁶ bytes at the end of `before`; refusal_us microseconds of CPU
    """

    before: Arrived
    overload: Arrived
    after: Arrived
    watched: Watched
    resident_mb: float
    refusals: Arrived
    refusal_us: float

    @property
    def capacity_per_s(self) -> float:
        """Rows a second, before and after."""
        return mean((self.before.accepted_per_s, self.after.accepted_per_s))

    @property
    def capacity_p99_ms(self) -> float:
        """Before and after."""
        return mean((self.before.p99_ms, self.after.p99_ms))


def measure(bundle: Path, sent: Sequence[bytes], *, times: float, seconds: float) -> Overload:
    """A server that is asked for `times` what it can do."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as elsewhere:
        with running(serve_command(bundle, "--max-queue-rows", str(QUEUE_ROWS))) as server:
            full = partial(in_turn, server.port, sent, connections=CONNECTIONS, at_a_time=QUEUE_ROWS)
            elsewhere.submit(full, seconds=seconds / 10).result()
            before = elsewhere.submit(full, seconds=seconds / 3).result()
            resident_mb = server.resident_mb()
            per_s = times * before.accepted_per_s
            more = partial(
                on_schedule, server.port, sent, connections=CONNECTIONS, seconds=seconds, per_s=per_s, tick_s=TICK_S
            )
            load = elsewhere.submit(more)
            watched = _watch(server, load)
            overload = load.result()
            after = elsewhere.submit(full, seconds=seconds / 3).result()
        many = partial(in_turn, connections=REFUSED_AT_A_TIME, at_a_time=REFUSED_AT_A_TIME)
        refusals, refusal_us = refused(bundle, sent, many, elsewhere=elsewhere, seconds=seconds / 6)
    return Overload(before, overload, after, watched, resident_mb, refusals, refusal_us)


def _watch(server: Server, load: "Future[Arrived]") -> Watched:
    """Ask for the server's health, and look at its memory, while it is under load."""
    health_ms: list[float] = []
    resident_mb: list[float] = []
    not_healthy = 0
    connection = HTTPConnection(HOST, server.port, timeout=30)
    while not load.done():
        began = perf_counter()
        connection.request("GET", PROBES[len(health_ms) % len(PROBES)])
        with connection.getresponse() as answer:
            answer.read()
        health_ms.append(1000 * (perf_counter() - began))
        not_healthy += answer.status != 200
        if len(health_ms) % WEIGH_EVERY == 1:
            resident_mb.append(server.resident_mb())
        sleep(PROBE_EVERY_S)
    connection.close()
    return Watched(tuple(health_ms), not_healthy, tuple(resident_mb))


def claimed(found: Overload, case: Case) -> list[Claim]:
    """What must hold."""
    overload, watched = found.overload, found.watched
    answered = f"{overload.accepted_per_s:,.0f} : {found.capacity_per_s:,.0f} rows/s"
    waited = f"{overload.p99_ms:,.0f} : {found.capacity_p99_ms:,.0f} ms"
    goodput = claims.ratio(overload.accepted_per_s, found.capacity_per_s)
    lateness = claims.ratio(overload.p99_ms, found.capacity_p99_ms)
    largest_mb = max(watched.resident_mb)
    failed = sum(each.failed for each in (found.before, overload, found.after, found.refusals))
    return [
        Claim("answered : capacity", "≥", case.goodput, goodput, answered),
        Claim("p99 of what was accepted : at capacity", "≤", 2, lateness, waited),
        Claim("neither 200 nor 429 with Retry-After", "≤", 0, failed, f"{overload.sent:,} requests"),
        Claim("CPU of a refusal, µs", "≤", 60, found.refusal_us, f"{found.refusals.refused:,} refusals"),
        Claim("resident memory : before", "≤", 1.05, claims.ratio(largest_mb, found.resident_mb),
              f"{largest_mb:.0f} : {found.resident_mb:.0f} MB", must_hold=True),
        Claim("slowest answer of /health, ms", "≤", 50, max(watched.health_ms), f"{len(watched.health_ms):,} probes"),
        Claim("answers of /health other than 200", "≤", 0, watched.not_healthy),
    ]  # fmt: skip


def _report(name: str, case: Case, found: Overload) -> None:
    held = claimed(found, case)
    took = claims.ratio(1000, found.capacity_per_s)
    print(f"{name}, {took:.2g} ms a row, {case.times:g} times its capacity, a queue of {QUEUE_ROWS} rows")
    print(f"{results.on_machine()}; the generator on the same cores\n")
    print(claims.table(held))
    phases = {
        "capacity": found.before, "overload": found.overload, "capacity again": found.after,
        "refusals alone": found.refusals,
    }  # fmt: skip
    head = ("", "s", "sent/s", "answered/s", "refused/s", "p50 ms", "p99 ms", "lag p99 ms", "lag max ms",
            "generator's cores")  # fmt: skip
    print("\n" + results.table(head, [_row(phase, each) for phase, each in phases.items()]) + "\n")
    watched = replace(found.watched, health_ms=tuple(round(each, 2) for each in found.watched.health_ms))
    content = asdict(replace(found, watched=watched, refusal_us=round(found.refusal_us, 2)))
    content = {"times": case.times, "claims": claims.as_json(held), **content}
    print(results.keep(f"overload-{name}", content) + "\n")


def _row(phase: str, found: Arrived) -> tuple[str, ...]:
    rates = (found.sent / found.seconds, found.accepted_per_s, found.refused / found.seconds)
    times_ms = (found.p50_ms, found.p99_ms)
    return (
        phase,
        f"{found.seconds:.0f}",
        *(f"{rate:,.0f}" for rate in rates),
        *(f"{ms:,.1f}" for ms in times_ms),
        f"{found.lag_p99_ms:.1f}",
        f"{found.lag_max_ms:.1f}",
        f"{found.generator_cores:.2f}",
    )


if __name__ == "__main__":
    main()
