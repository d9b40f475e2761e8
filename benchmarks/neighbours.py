"""A well-behaved client, alone and beside hostile ones: what they cost it.

Run as `python -m benchmarks.neighbours [--model medium] [--seconds 30]`. Its requests arrive on schedule; beside them
some clients drip heads and bodies byte by byte, and one sends everything that `tests/service/test_hostile.py` lists.
"""

from argparse import ArgumentParser
from collections.abc import Container, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import sleep

from benchmarks import claims, requests, results, subjects
from benchmarks.arrivals import Arrived, on_schedule
from benchmarks.claims import Claim
from benchmarks.connections import as_bytes
from benchmarks.hostile import DRIP_EVERY_S, Met, attack
from benchmarks.servers import running, serve_command
from tests.service.test_hostile import BODIES, REQUESTS

MODEL = "medium"
PER_S, CONNECTIONS = 100, 16
DRIPPERS = 100  # of heads, and as many of bodies
BOMBS_PER_S = 5
_FIRST_S = 1.0  # hostile clients come so much earlier, and stay so much longer


def main() -> None:
    """Measure, print tables, keep the figures as JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=subjects.NAMES, default=MODEL, help=f"default {MODEL}")
    parser.add_argument("--seconds", type=float, default=30, help="length of each turn (default 30)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="turns alone and turns beside hostile clients (default 5)"
    )
    arguments = parser.parse_args()
    subject = subjects.subject(arguments.model)
    sent = [as_bytes(request) for request in requests.encode(subject)]
    found = measure(subject.bundle, sent, seconds=arguments.seconds, rounds=arguments.rounds)
    _report(found, model=subject.name)


@dataclass(frozen=True)
class Beside:
    """What became of the well-behaved client's requests, round by round, what the hostile ones got, how often, and
    what of theirs no round came to.
    """

    alone: tuple[Arrived, ...]
    beside: tuple[Arrived, ...]
    met: dict[str, int]
    unsent: tuple[str, ...]


def measure(
    bundle: Path,
    sent: Sequence[bytes],
    *,
    seconds: float,
    rounds: int,
    drippers: int = DRIPPERS,
    bombs_per_s: float = BOMBS_PER_S,
) -> Beside:
    """A client alone and beside hostile ones, in turn, in the other order every other round. Each sends first what
    those before it did not come to.
    """
    bombs = hostile_inputs()
    alone, beside, met = [], [], Met()
    with (
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as elsewhere,
        running(serve_command(bundle)) as server,
    ):
        behave = partial(on_schedule, server.port, sent, connections=CONNECTIONS, per_s=PER_S)
        offend = partial(attack, server.port, drippers=drippers, bombs_per_s=bombs_per_s)
        for warm in (elsewhere.submit(behave, seconds=_FIRST_S), elsewhere.submit(offend, bombs, seconds=_FIRST_S)):
            warm.result()
        for turn in range(rounds):
            if turn % 2 == 0:
                alone.append(elsewhere.submit(behave, seconds=seconds).result())
            bombs = unsent_first(bombs, met.sent)
            offending = elsewhere.submit(offend, bombs, seconds=seconds + 2 * _FIRST_S)
            sleep(_FIRST_S)
            beside.append(elsewhere.submit(behave, seconds=seconds).result())
            met.times.update(offending.result().times)
            met.sent.update(offending.result().sent)
            if turn % 2 == 1:
                alone.append(elsewhere.submit(behave, seconds=seconds).result())
    unsent = tuple(name for name in bombs if name not in met.sent)
    return Beside(tuple(alone), tuple(beside), dict(sorted(met.times.items())), unsent)


def hostile_inputs() -> dict[str, bytes]:
    """Bodies and requests that tests send one by one, each of which has its documented status there, by name."""
    return {row[0]: row[1] for row in BODIES} | {row[0]: row[1] for row in REQUESTS}


def unsent_first(bombs: Mapping[str, bytes], sent: Container[str]) -> dict[str, bytes]:
    """The same ones, those that were not sent yet before the others."""
    return {name: bombs[name] for name in sorted(bombs, key=lambda name: name in sent)}


def claimed(found: Beside) -> list[Claim]:
    """What must hold."""
    pairs = list(zip(found.alone, found.beside, strict=True))
    ratios = [claims.ratio(beside.p99_ms, alone.p99_ms) for alone, beside in pairs]
    rounds = ", ".join(f"{beside.p99_ms:.1f} : {alone.p99_ms:.1f}" for alone, beside in pairs)
    turns = (*found.alone, *found.beside)
    not_answered = sum(each.sent - each.accepted for each in turns)
    failures = sum(times for what, times in found.met.items() if what.partition(": ")[2].startswith("5"))
    return [
        Claim("its p99 beside hostile clients : alone", "≤", 2, median(ratios), f"{rounds} ms"),
        Claim("its requests that were not answered 200", "≤", 0, not_answered, f"{sum(t.sent for t in turns):,}"),
        Claim("hostile clients answered 5xx", "≤", 0, failures, f"{sum(found.met.values()):,} answers and ends"),
        Claim("hostile inputs that were never sent", "≤", 0, len(found.unsent), f"{len(hostile_inputs())}"),
    ]


def _report(found: Beside, *, model: str) -> None:
    held = claimed(found)
    print(f"{model}, {PER_S} requests/s beside {DRIPPERS} heads and {DRIPPERS} bodies that come a byte every")
    print(f"{DRIP_EVERY_S:g} s, and {BOMBS_PER_S} hostile inputs a second; {results.on_machine()}\n")
    print(claims.table(held) + "\n")
    rows = [
        (who, str(turn + 1), f"{each.p50_ms:.1f}", f"{each.p99_ms:.1f}", f"{each.lag_p99_ms:.1f}")
        for turn, pair in enumerate(zip(found.alone, found.beside, strict=True))
        for who, each in zip(("alone", "beside hostile clients"), pair, strict=True)
    ]
    print(results.table(("", "round", "p50 ms", "p99 ms", "lag p99 ms"), rows) + "\n")
    print(results.table(("hostile", "times"), [(what, f"{times:,}") for what, times in found.met.items()]))
    content = {"model": model, "per_s": PER_S, "drippers": DRIPPERS, "bombs_per_s": BOMBS_PER_S}
    content = {"claims": claims.as_json(held), **content, **asdict(found)}
    print("\n" + results.keep("neighbours", content, lacks={MODEL} - {model}))
    claims.require(held)


if __name__ == "__main__":
    main()
