"""`vae-serve` beside plain handlers, LitServe, bare servers and onnxruntime alone: ratios first, then figures.

Run as `python -m benchmarks.serving [--model small …] [--kinds encode …]`. Servers take turns, in the other order every
other round; each kind of request keeps its figures in a file of its own.
"""

import shutil
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from math import isinf
from statistics import median
from typing import Any

from benchmarks import contenders, raw, results, subjects
from benchmarks.bars import BARS, Outcome, Round, outcome
from benchmarks.contenders import LITSERVE, Contender
from benchmarks.kinds import KINDS
from benchmarks.loads import Load, load
from benchmarks.servers import Server, repeated
from benchmarks.subjects import Subject

_HEAD = ("median of rounds", "c", "requests/s", "p50 ms", "p99 ms", "CPU s/1k", "memory MB", "elsewhere", "errors")


def main() -> None:
    """Measure, print tables, keep the figures as JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", nargs="+", choices=subjects.NAMES, default=("small", "medium"), help="default small medium"
    )
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS), help="default all")
    parser.add_argument("--rounds", type=int, default=3, help="times that each server is started (default 3)")
    parser.add_argument("--seconds", type=int, default=5, help="length of a load (default 5)")
    parser.add_argument("--litserve", metavar="PYTHON", help="of an environment with litserve (benchmarks/lit.py)")
    parser.add_argument("--openvino", metavar="PYTHON", help="of an environment with vaeserve[openvino], for bf16")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("serving: wrk, which makes the load, is not installed: apt-get install -y wrk")
    for name in arguments.model:
        _measure(
            subjects.subject(name),
            list(dict.fromkeys(arguments.kinds)),
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            litserve=arguments.litserve,
            openvino=arguments.openvino,
        )


def _measure(
    subject: Subject, kinds: Sequence[str], *, rounds: int, seconds: int, litserve: str | None, openvino: str | None
) -> None:
    servers = contenders.contenders(subject.bundle, litserve=litserve, openvino=openvino)
    servers = [server for server in servers if server.serves & set(kinds)]
    measured = []
    for turn in range(rounds):
        print(f"{subject.name}, round {turn + 1} of {rounds}", file=sys.stderr)
        measured.append(_round(subject, servers if turn % 2 == 0 else servers[::-1], kinds, seconds=seconds))
    print(f"\n{subject.name}@{subject.digest[:12]}; {results.on_machine()}; wrk on the same cores, over loopback")
    for kind in kinds:
        _report(subject, kind, measured, seconds=seconds)
    for graph in measured[0].limits.rows_per_s:
        print(f"\n{graph} alone, rows/s\n")
        print(results.table(("rows a run", *map(str, raw.BATCH_ROWS)), _raw_rows(measured, graph)))


def _round(subject: Subject, servers: Iterable[Contender], kinds: Sequence[str], *, seconds: int) -> Round:
    """Every server under every kind of load that it serves, and the limits in the same minutes."""
    loads: dict[tuple[str, str, int], Load] = {}
    for server in servers:
        print(f"  {server.name}", file=sys.stderr)
        with server.running() as running:
            running.settle()
            for kind in kinds:
                if kind in server.serves:
                    found = _loads(running, server, subject, kind, seconds=seconds)
                    loads |= {(server.name, kind, each.connections): each for each in found}
    print("  onnxruntime alone", file=sys.stderr)
    graphs = sorted({KINDS[kind].graph for kind in kinds})
    return Round(loads, raw.limits(subject.bundle, graphs, seconds=seconds / 10))


def _loads(running: Server, server: Contender, subject: Subject, kind: str, *, seconds: int) -> list[Load]:
    """What a server does under a kind of load, its answers having been checked."""
    described = KINDS[kind]
    sent, most = described.requests(subject), max(described.connections)
    shaped = [server.shaped(request) for request in sent]
    # As many at once as under load, so that the rows that are compared have been in batches, and the server is warm.
    asked = repeated(shaped, max(2 * most, len(shaped)))
    if server.is_floor:
        running.answers(asked, connections=most)
    else:
        apart = described.difference(running, asked, subject, most)
        allowed = server.allowed_difference or described.allowed_difference
        if not apart <= allowed:
            what = "answers of another shape" if isinf(apart) else f"a difference of {apart:.3g}"
            sys.exit(f"serving: {server.name}, {kind}: got {what}, expected at most {allowed:g}")
    length_s = described.stretch * seconds
    return [load(running, shaped, connections=c, seconds=length_s) for c in described.connections]


def _report(subject: Subject, kind: str, rounds: Sequence[Round], *, seconds: int) -> None:
    """Tables of one kind of request, and its file."""
    found = (outcome(bar, rounds, subject=subject.name) for bar in BARS if bar.kind == kind)
    outcomes = [one for one in found if one is not None]
    print(f"\n{subject.name}, {kind}\n")
    print(results.table(("what", "bar", "measured", "ratio", "rounds", "met"), [bar_row(one) for one in outcomes]))
    measured = {key: [each.loads[key] for each in rounds] for key in rounds[0].loads if key[1] == kind}
    rows = [load_row(server, loads) for (server, _, _), loads in measured.items()]
    print("\n" + results.table(_HEAD, sorted(rows, key=lambda row: -int(row[1]))))
    content = {
        "subject": {"name": subject.name, "digest": subject.digest},
        "seconds": KINDS[kind].stretch * seconds,
        "bars": [asdict(one) | {"ratio": one.ratio, "met": one.is_met} for one in outcomes],
        "loads": {f"{server}, c = {c}": [asdict(one) for one in loads] for (server, _, c), loads in measured.items()},
        "alone": [asdict(each.limits) for each in rounds],
    }
    lacks = {LITSERVE} - {server for server, _, _ in measured} if kind == "encode" else ()
    print("\n" + results.keep(f"serving-{subject.name}-{kind}", content, lacks=lacks))


def bar_row(found: Outcome) -> tuple[str, ...]:
    """A bar in a table: what, the bar, both sides, the ratio, that of each round, and whether it is met."""
    limit = "" if found.limit is None else f"{found.sign} {found.limit:g}"
    measured = _number(found.ours) if found.theirs is None else f"{_number(found.ours)} : {_number(found.theirs)}"
    met = {None: "", True: "yes", False: "no"}[found.is_met]
    return found.what, limit, measured, _number(found.ratio), ", ".join(map(_number, found.ratios)), met


def load_row(server: str, loads: Sequence[Load]) -> tuple[str, ...]:
    """A server under one kind of load in a table, in the medians of its rounds."""

    def middle(figure: str) -> Any:
        return median(getattr(each, figure) for each in loads)

    return (
        server,
        str(loads[0].connections),
        _number(middle("requests_per_s")),
        f"{middle('p50_ms'):.2f}",
        f"{middle('p99_ms'):.2f}",
        f"{middle('cpu_s_per_1k'):.3f}",
        f"{middle('resident_mb'):.0f}",
        f"{middle('elsewhere_cores'):.2f}",
        str(sum(each.errors for each in loads)),
    )


def _raw_rows(rounds: Sequence[Round], graph: str) -> list[tuple[str, ...]]:
    found = [each.limits.rows_per_s[graph] for each in rounds]
    return [
        (setting, *(_number(median(each[setting][str(n)] for each in found)) for n in raw.BATCH_ROWS))
        for setting in found[0]
    ]


def _number(value: float) -> str:
    """Three digits or more, for a table."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
