"""SIGTERM, SIGHUP and kill -9 under full load, and what callers see of them.

Run as `python -m benchmarks.signals [--times 20] [--kills 10]`. Callers ask as fast as they are answered; they send
again only what was not read (`benchmarks/connections.py` says how that is told). Two versions of a model answer
differently, so that an answer tells which of them made it.
"""

import asyncio
import os
import re
import signal
from argparse import ArgumentParser
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, TypeVar, cast

import uvloop

from benchmarks import claims, results, subjects
from benchmarks.callers import Callers, Seen
from benchmarks.claims import Claim
from benchmarks.connections import Unanswered, as_bytes, connect
from benchmarks.servers import Request, Server, running, serve_command
from benchmarks.versions import Versions, versions

CALLERS = 64
WORKERS = (1, 2)
LOAD_S = 1.0  # before the first signal, and between two that end a worker
BACK_WITHIN_S, FULL = 5, 0.9  # of the rate before the first kill

T = TypeVar("T")

_LOOK_EVERY_S = 0.02
_WINDOW_S = 0.5
_GIVE_UP_S = 60.0

_METRICS = as_bytes(Request("/metrics"), "Connection: close")


def main() -> None:
    """Measure, print tables, keep the figures as JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="SIGTERMs and SIGHUPs, each for 1 and 2 workers (20)")
    parser.add_argument("--kills", type=int, default=10, help="kill -9 of one of two workers (10)")
    arguments = parser.parse_args()
    subject, bundles = subjects.subject("small"), [subjects.subject(name).bundle for name in ("small", "other")]
    answers = versions(bundles, subject.images)
    found = [end(bundles[0], answers, workers=workers, times=arguments.times) for workers in WORKERS]
    found += [reload(bundles, answers, workers=workers, times=arguments.times) for workers in WORKERS]
    found.append(kill(bundles[0], answers, times=arguments.kills))
    _report(found)


@dataclass(frozen=True)
class Signalled:
    """What callers saw while a signal was sent so many times.

    Units:  seconds, of each: until the process was gone; until every caller was answered by the new version; until as
            many workers as before served, and as much was answered as before the first one was killed
    """

    signal: str
    workers: int
    seen: Seen
    seconds: tuple[float, ...]
    codes: tuple[int, ...] = ()
    """With which the process ended."""
    replaced_s: tuple[float, ...] = ()
    """Until as many workers as before served, however much was answered by then."""
    lost_elsewhere: int = 0
    """Requests lost on connections that were not those of the worker that was killed."""


def end(bundle: Path, answers: Versions, *, workers: int, times: int) -> Signalled:
    """SIGTERM, each time to a process that was just started."""
    seen, seconds, codes = Seen(), [], []
    for _ in range(times):
        with running(serve_command(bundle, "--workers", str(workers))) as server:
            server.settle()
            gone_s, code = _run(_ended(server, Callers(server.port, answers, seen, count=CALLERS)))
        seconds.append(gone_s)
        codes.append(code)
    return Signalled("SIGTERM", workers, seen, tuple(seconds), codes=tuple(codes))


async def _ended(server: Server, callers: Callers) -> tuple[float, int]:
    async with callers.calling():
        await asyncio.sleep(LOAD_S)
        began = perf_counter()
        os.kill(server.pid, signal.SIGTERM)
        code = await asyncio.to_thread(_exit_code, server.pid)
        return perf_counter() - began, code


def _exit_code(pid: int) -> int:
    """With which a child ended, the signal's number below 0 if by one. Whoever started it can still wait for it."""
    ended = cast("os.waitid_result", os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT))
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def reload(bundles: Sequence[Path], answers: Versions, *, workers: int, times: int) -> Signalled:
    """SIGHUP, each time after the other version was put in the place of the one that is served."""
    with TemporaryDirectory() as folder:
        served = Path(folder) / "served"
        _put(served, bundles[0])
        with running(serve_command(served, "--workers", str(workers))) as server:
            server.settle()
            callers = Callers(server.port, answers, Seen(), count=CALLERS)
            seconds = _run(_reloaded(server, callers, served, list(zip(bundles, answers.mu, strict=True)), times=times))
    return Signalled("SIGHUP", workers, callers.seen, seconds)


async def _reloaded(
    server: Server, callers: Callers, served: Path, bundles: Sequence[tuple[Path, str]], *, times: int
) -> tuple[float, ...]:
    seconds = []
    async with callers.calling():
        await asyncio.sleep(LOAD_S)
        for turn in range(1, times + 1):
            bundle, digest = bundles[turn % len(bundles)]
            _put(served, bundle)
            began = perf_counter()
            os.kill(server.pid, signal.SIGHUP)
            async with asyncio.timeout(_GIVE_UP_S):
                while set(callers.digests) != {digest}:  # noqa: ASYNC110  what callers hear ends it
                    await asyncio.sleep(_LOOK_EVERY_S)
            seconds.append(perf_counter() - began)
    return tuple(seconds)


def _put(served: Path, bundle: Path) -> None:
    """Let a name stand for another folder, in one step."""
    beside = served.with_name("next")
    beside.symlink_to(bundle.resolve())
    beside.replace(served)


def kill(bundle: Path, answers: Versions, *, times: int) -> Signalled:
    """kill -9, each time of one of two workers."""
    with running(serve_command(bundle, "--workers", str(max(WORKERS)))) as server:
        server.settle()
        callers = Callers(server.port, answers, Seen(), count=CALLERS)
        return _run(_killed(server, callers, times=times))


async def _killed(server: Server, callers: Callers, *, times: int) -> Signalled:
    seconds, replaced_s, lost_elsewhere = [], [], 0
    async with callers.calling():
        await asyncio.sleep(LOAD_S)
        rate = await _rate(callers, 3 * LOAD_S)
        for turn in range(times):
            await asyncio.sleep(LOAD_S)
            before = server.workers()
            victim, lost = before[turn % len(before)], len(callers.lost_at)
            os.kill(victim, signal.SIGSTOP)  # so that its connections are known to the last
            its_own = _callers_ports(victim)
            began = perf_counter()
            os.kill(victim, signal.SIGKILL)
            async with asyncio.timeout(_GIVE_UP_S):
                await _all_serve(server, victim, workers=len(before))
            replaced_s.append(perf_counter() - began)
            with suppress(TimeoutError):  # which is more than is claimed, and told so
                async with asyncio.timeout(_GIVE_UP_S):
                    while await _rate(callers, _WINDOW_S) < FULL * rate:
                        pass
            seconds.append(perf_counter() - began)
            lost_elsewhere += sum(port not in its_own for port in callers.lost_at[lost:])
    return Signalled(
        "SIGKILL",
        max(WORKERS),
        callers.seen,
        tuple(seconds),
        replaced_s=tuple(replaced_s),
        lost_elsewhere=lost_elsewhere,
    )


async def _all_serve(server: Server, victim: int, *, workers: int) -> None:
    """Once another worker has taken the victim's place and serves."""
    while True:
        now = server.workers()
        if victim not in now and len(now) == workers and await _workers_that_serve(server.port) == workers:
            return
        await asyncio.sleep(_LOOK_EVERY_S)


async def _workers_that_serve(port: int) -> int:
    """As the service says, 0 where it does not answer."""
    try:
        answer = await (await connect(port)).ask(_METRICS)
    except (ConnectionError, Unanswered):
        return 0
    found = re.search(rb"^vaeserve_workers (\S+)", answer.body, re.MULTILINE)
    return int(float(found[1])) if found else 0


async def _rate(callers: Callers, seconds: float) -> float:
    """Right answers a second."""
    began, before = perf_counter(), callers.seen.right
    await asyncio.sleep(seconds)
    return (callers.seen.right - before) / (perf_counter() - began)


def _callers_ports(pid: int) -> set[int]:
    """The ports at the other ends of a process's connections (proc_pid_net(5))."""
    opened = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            opened.add(str(descriptor.readlink()))
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(fields[2].rpartition(":")[2], 16) for fields in lines if f"socket:[{fields[9]}]" in opened}


def _run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def claimed(found: Signalled) -> list[Claim]:
    """What must hold."""
    seen = found.seen
    what = f"{found.signal}, {found.workers} worker{'s' * (found.workers > 1)}"
    asked = f"{len(found.seconds)} times, {seen.right:,} right answers"
    not_right = seen.wrong + sum(seen.statuses.values())
    held = [Claim(f"{what}: answers that were not right", "≤", 0, not_right, asked)]
    if found.signal == "SIGKILL":
        return [
            *held,
            Claim(f"{what}: lost by other workers", "≤", 0, found.lost_elsewhere, f"{seen.lost} by those killed"),
            Claim(
                f"{what}: seconds until all is as before, at most",
                "≤",
                BACK_WITHIN_S,
                max(found.seconds),
                f"{max(found.replaced_s):.1f} until another worker served",
            ),
        ]
    held.append(Claim(f"{what}: accepted and lost", "≤", 0, seen.lost, f"{seen.again} not read and sent again"))
    if found.codes:
        held.append(Claim(f"{what}: ended otherwise than with 0", "≤", 0, sum(code != 0 for code in found.codes)))
    return held


def _report(found: Sequence[Signalled]) -> None:
    held = [claim for each in found for claim in claimed(each)]
    print(f"{CALLERS} callers of small; {results.on_machine()}; they run on the same cores\n")
    print(claims.table(held) + "\n")
    head = ("signal", "workers", "times", "right", "wrong", "not 200", "lost", "sent again", "refused",
            "s, median", "s, at most")  # fmt: skip
    print(results.table(head, [_row(each) for each in found]))
    content = {"claims": claims.as_json(held), "signals": [asdict(each) for each in found]}
    print("\n" + results.keep("signals", content))
    claims.require(held)


def _row(found: Signalled) -> tuple[str, ...]:
    seen = found.seen
    counts = (seen.right, seen.wrong, sum(seen.statuses.values()), seen.lost, seen.again, seen.refused)
    return (
        found.signal,
        str(found.workers),
        str(len(found.seconds)),
        *(f"{count:,}" for count in counts),
        f"{median(found.seconds):.2f}",
        f"{max(found.seconds):.2f}",
    )


if __name__ == "__main__":
    main()
