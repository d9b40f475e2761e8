"""Where the microseconds of a request go: CPU time by file and function of ours, sampled while `wrk` loads the service.

Run as `python -m benchmarks.stages [--model small] [--kind encode]`. The service runs in this process, on this thread's
event loop, as one worker does under uvicorn; a timer interrupts it and notes where it is.
"""

import inspect
import os
import signal
import sys
import threading
import time
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from benchmarks import results, subjects
from benchmarks.kinds import KINDS
from benchmarks.loads import load
from benchmarks.servers import ROOT, Server, free_port
from service.app import create_app
from service.processes.server import Server as Service
from service.settings import Settings

EVERY_S = 0.001  # asked for; the kernel's clock decides
MOST_FUNCTIONS = 15
LOOP, UVICORN, THREADS = "event loop, sockets", "uvicorn", "other threads"

_SERVICE = f"{ROOT / 'service'}{os.sep}"
_PROTOCOLS = f"{Path(uvicorn.__file__).parent / 'protocols'}{os.sep}"
_SAID = {
    LOOP: "uvloop's own work and the kernel's, as far as no Python of the others is on the stack",
    UVICORN: "HTTP to ASGI messages and back, writing to the socket included",
    THREADS: "onnxruntime's, where it does not run on the event loop, and pools for what is large",
}

Place = tuple[str, str]
"""A file, or what stands for it, and a function."""


def main() -> None:
    """Measure, print tables, keep the figures as JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=subjects.NAMES, default="small")
    parser.add_argument("--kind", choices=tuple(KINDS), default="encode")
    parser.add_argument("--seconds", type=int, default=15, help="length of the load (default 15)")
    arguments = parser.parse_args()
    subject, kind = subjects.subject(arguments.model), KINDS[arguments.kind]
    server = Server(os.getpid(), free_port(), ready_s=0)
    settings = Settings(bundles=(subject.bundle,), device="cpu", port=server.port, log_level="warning")
    started = threading.Event()
    serving = Service(create_app(settings), settings, on_listening=started.set)
    sampler, found = Sampler(), []

    def drive() -> None:
        try:
            started.wait()
            sent, connections = kind.requests(subject), max(kind.connections)
            load(server, sent, connections=connections, seconds=1)
            sampler.start()
            answers = load(server, sent, connections=connections, seconds=arguments.seconds).answers
            found.append(sampler.stop(answers))
        finally:
            serving.should_exit = True

    driver = threading.Thread(target=drive, daemon=True)  # it may not outlive a server that did not start
    driver.start()
    serving.run()
    driver.join()
    if not found:
        sys.exit("stages: the load failed, see above")
    _report(found[0], subject=subject.name, kind=arguments.kind)


@dataclass(frozen=True)
class Profile:
    """CPU microseconds of a request, by place, all threads together; samples taken, and their own share of the CPU."""

    us: Mapping[Place, float]
    requests: int
    samples: int
    sampling_share: float

    @property
    def total_us(self) -> float:
        """Of a request."""
        return sum(self.us.values())


class Sampler:
    """Adds the CPU time of the main thread since the last sample to where that thread is now.

    The timer counts the CPU time of the process, so that it is silent while nothing runs. What the main thread used
    just before it waits for another is added to the event loop: exact where it never waits, as under full load.
    """

    def __init__(self) -> None:
        signal.signal(signal.SIGPROF, self._sample)
        # By its number, as the samples come from inside that thread and the start from another.
        self._clock = time.pthread_getcpuclockid(threading.main_thread().ident or 0)

    def start(self) -> None:
        """Begin anew."""
        self._seconds: defaultdict[Place, float] = defaultdict(float)
        self._samples, self._sampling_s = 0, 0.0
        self._process_s, self._thread_s = time.process_time(), time.clock_gettime(self._clock)
        self._last_s = self._thread_s
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)

    def stop(self, requests: int) -> Profile:
        """What was found over so many requests."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        thread_s, process_s = time.clock_gettime(self._clock) - self._thread_s, time.process_time() - self._process_s
        us = {place: 1e6 * seconds / requests for place, seconds in self._seconds.items()}
        us[THREADS, ""] = 1e6 * (process_s - thread_s) / requests
        return Profile(us, requests, self._samples, self._sampling_s / process_s)

    def _sample(self, _signal: int, frame: FrameType | None) -> None:
        now_s = time.clock_gettime(self._clock)
        self._seconds[place(_frames(frame))] += now_s - self._last_s
        self._samples += 1
        self._last_s = time.clock_gettime(self._clock)
        self._sampling_s += self._last_s - now_s


def place(stack: Iterator[Place]) -> Place:
    """Whose work a stack of (path, function) is, the innermost first: that of the first in the service or in uvicorn's
    protocols, so that a library's work counts as that of the file that called it.
    """
    for path, function in stack:
        if path.startswith(_SERVICE):
            return f"service/{path.removeprefix(_SERVICE)}", function
        if path.startswith(_PROTOCOLS):
            return UVICORN, function
    return LOOP, ""


def by_file(us: Mapping[Place, float]) -> dict[str, float]:
    """Microseconds of all functions of a file together, the largest first."""
    summed: defaultdict[str, float] = defaultdict(float)
    for (file, _), each in us.items():
        summed[file] += each
    return dict(sorted(summed.items(), key=lambda each: -each[1]))


def _frames(frame: FrameType | None) -> Iterator[Place]:
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_code.co_name
        frame = frame.f_back


def _report(found: Profile, *, subject: str, kind: str) -> None:
    files = by_file(found.us)
    named = [(place, us) for place, us in found.us.items() if place[1]]
    functions = sorted(named, key=lambda each: -each[1])[:MOST_FUNCTIONS]
    print(f"{subject}, {kind}: {found.total_us:.0f} µs of CPU a request; {results.on_machine()}")
    print(f"{found.requests:,} requests, {found.samples:,} samples, which took {found.sampling_share:.1%} of the CPU\n")
    rows = [(file, f"{us:.1f}", f"{us / found.total_us:.0%}", _what(file)) for file, us in files.items()]
    print(results.table(("where", "µs", "share", "what"), rows))
    lines = [(file, function, f"{us:.1f}") for (file, function), us in functions]
    print("\n" + results.table(("where", "function", "µs"), lines))
    content = {
        "subject": subject,
        "kind": kind,
        "total_us": found.total_us,
        "us": files,
        "functions": [{"where": file, "function": function, "us": us} for (file, function), us in functions],
        **{name: value for name, value in asdict(found).items() if name != "us"},
    }
    print("\n" + results.keep(f"stages-{subject}-{kind}", content))


def _what(file: str) -> str:
    """What a file of the service says it is for."""
    module = sys.modules.get(file.removesuffix(".py").replace(os.sep, "."))
    said = inspect.getdoc(module) if module else None
    return _SAID.get(file, "") if said is None else said.partition("\n\n")[0].replace("\n", " ").partition(". ")[0]


if __name__ == "__main__":
    main()
