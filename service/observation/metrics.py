"""What the service counts, over all of its processes, and how Prometheus reads it."""

import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from itertools import accumulate, product

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.utils import floatToGoString

from service.errors import PROBLEMS, Problem
from service.observation.record import Record
from service.observation.tally import ENDS, LAST_REFUSED, RELOADS_DONE, RELOADS_REFUSED, Tally
from service.observation.timing import STAGES

# What stands for every path that is no route, files beneath /docs too, and for a status that we do not send ourselves.
OTHER = "other"

# The caller left, or the process ended, before there was an answer; it is never sent.
NO_ANSWER = 499

_STATUSES = (200, 204, 304, 307, *sorted({problem.status for problem in PROBLEMS}), NO_ANSWER)

_SECONDS = (
    0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05,
    0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0,
)  # fmt: skip
_ROWS = tuple(2.0**power for power in range(13))

Labels = Mapping[str, Sequence[str]]
"""Names of labels, and every value that each can have."""


class Gauge:
    """A number that goes up and down; of the service, the sum over its processes."""

    def __init__(self, tally: Tally, name: str, text: str) -> None:
        self.name = name
        self._text = text
        self._tally = tally
        self._cells = tally.cells
        self.cell = tally.reserve_live()

    def total(self) -> float:
        """Its value over all processes, now."""
        return self._tally.total(self.cell)

    def add(self, amount: float) -> None:
        """Change it."""
        self._cells[self.cell] += amount

    def set(self, value: float) -> None:
        """Replace it."""
        self._cells[self.cell] = value

    def family(self, sums: Sequence[float]) -> Metric:
        """For Prometheus."""
        return GaugeMetricFamily(self.name, self._text, value=sums[self.cell])


class Counter:
    """A number for each combination of labels, which only grows."""

    def __init__(self, tally: Tally, name: str, text: str, labels: Labels) -> None:
        self.name = name
        self._text = text
        self._labels = tuple(labels)
        self._cells = tally.cells
        self._places = {values: tally.reserve(1) for values in product(*labels.values())}

    def add(self, *values: str) -> None:
        """Count one."""
        self._cells[self._places[values]] += 1

    def family(self, sums: Sequence[float], *, since: float) -> Metric:
        """For Prometheus, the combinations that have been counted so often."""
        family = CounterMetricFamily(self.name, self._text, labels=self._labels)
        for values, cell in self._places.items():
            if sums[cell] >= since:
                family.add_metric(values, sums[cell])
        return family


class Histogram:
    """How often a value came, by its size, for each value of a label."""

    def __init__(self, tally: Tally, name: str, text: str, labels: Labels, *, bounds: tuple[float, ...]) -> None:
        self.name = name
        self._text = text
        self._labels = tuple(labels)
        self._bounds = bounds
        self._sum = len(bounds) + 1  # after a cell for each bound, and one for what is beyond them
        self._cells = tally.cells
        self._places = {values: tally.reserve(self._sum + 1) for values in product(*labels.values())}

    def observe(self, value: float, *labels: str) -> None:
        """Count one."""
        first = self._places[labels]
        self._cells[first + bisect_left(self._bounds, value)] += 1
        self._cells[first + self._sum] += value

    def family(self, sums: Sequence[float]) -> Metric:
        """For Prometheus, the labels that have been counted."""
        family = HistogramMetricFamily(self.name, self._text, labels=self._labels)
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        for values, first in self._places.items():
            counts = list(accumulate(sums[first : first + self._sum]))
            if counts[-1] or not values:
                family.add_metric(values, list(zip(bounds, counts, strict=True)), sums[first + self._sum])
        return family


class Metrics:
    """All of them. `routes` are the names that a path may be counted under, `workers` how many are to serve."""

    def __init__(self, routes: Iterable[str] = (), *, tally: Tally | None = None, workers: int = 1) -> None:
        self._workers = workers
        self._tally = tally = tally or Tally()
        names = sorted({*routes, OTHER})
        self._statuses = {status: str(status) for status in _STATUSES}
        self._requests = Counter(
            tally,
            "vaeserve_requests_total",
            "Requests by route and status; 499 where there was nobody left to answer.",
            {"route": names, "code": [*self._statuses.values(), OTHER]},
        )
        self._rejected = Counter(
            tally,
            "vaeserve_rejected_total",
            "Requests that were answered with a problem, by its type.",
            {"reason": [problem.kind for problem in PROBLEMS]},
        )
        self._request_s = Histogram(
            tally,
            "vaeserve_request_seconds",
            "Seconds from a request's head to the end of its answer.",
            {"route": names},
            bounds=_SECONDS,
        )
        self._stage_s = Histogram(
            tally,
            "vaeserve_stage_seconds",
            "Seconds of an answer's stages: decode, queue, run, encode.",
            {"stage": STAGES},
            bounds=_SECONDS,
        )
        self.batch_s = Histogram(tally, "vaeserve_batch_seconds", "Seconds of one run of a graph.", {}, bounds=_SECONDS)
        self.batch_rows = Histogram(tally, "vaeserve_batch_rows", "Rows in one run of a graph.", {}, bounds=_ROWS)
        self.failed_runs = Counter(tally, "vaeserve_failed_runs_total", "Runs of a graph that failed.", {})
        self.in_progress = Gauge(tally, "vaeserve_requests_in_progress", "Requests that are being answered.")
        self.queue_rows = Gauge(tally, "vaeserve_queue_rows", "Engine rows that are admitted and have not run yet.")
        self.queue_limit_rows = Gauge(
            tally, "vaeserve_queue_limit_rows", "Engine rows that may be admitted at a time; 429 above."
        )
        self.busy_cores = Gauge(tally, "vaeserve_busy_cores", "Cores that runs of graphs have, as far as we deal them.")
        self._pid = tally.reserve_live()
        self._served = tally.reserve_live()

    @property
    def are_shared(self) -> bool:
        """Whether other processes count beside this one."""
        return self._tally.is_shared

    def serving(self, labels: Sequence[str]) -> None:
        """This process serves from now on, and what: name and digest of each model."""
        self._tally.cells[self._pid] = os.getpid()
        # As a number that a cell holds to the last digit, and which is not 0.
        self._tally.cells[self._served] = 1 + int.from_bytes(sha256(repr(labels).encode()).digest()[:6])

    def reloaded(self, *, is_refused: bool) -> None:
        """Count a reload of a process that serves by itself."""
        self._tally.reloaded(is_refused=is_refused)

    def refused(self, problem: Problem) -> None:
        """Count what was refused before it was a request."""
        self._rejected.add(problem.kind)

    def answered(self, record: Record, *, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.add(route, self._statuses.get(status, OTHER))
        self._request_s.observe(seconds, route)
        if record.timing:
            observe = self._stage_s.observe
            for stage, stage_s in zip(STAGES, record.timing.stages_s, strict=True):
                observe(stage_s, stage)
        if record.problem:
            self._rejected.add(record.problem)

    def families(self) -> Iterator[Metric]:
        """All that Prometheus is told, added up over all processes."""
        sums = self._tally.sums()
        yield self._requests.family(sums, since=1)
        yield self._rejected.family(sums, since=0)  # zeros too: the first of a kind is a rise that alerts must see
        yield self.failed_runs.family(sums, since=0)
        for histogram in (self._request_s, self._stage_s, self.batch_s, self.batch_rows):
            yield histogram.family(sums)
        for gauge in (self.in_progress, self.queue_rows, self.queue_limit_rows, self.busy_cores):
            yield gauge.family(sums)
        processes = {place: int(pid) for place, pid in enumerate(self._tally.each(self._pid)) if pid}
        yield GaugeMetricFamily("vaeserve_workers", "Processes that serve.", value=len(processes))
        served = set(self._tally.each(self._served)) - {0.0}
        yield GaugeMetricFamily(
            "vaeserve_served_versions", "Different versions of the models that processes serve.", value=len(served)
        )
        yield GaugeMetricFamily("vaeserve_workers_wanted", "Processes that are to serve.", value=self._workers)
        yield CounterMetricFamily("vaeserve_worker_ends", "Workers that ended and were replaced.", value=sums[ENDS])
        reloads = CounterMetricFamily("vaeserve_reloads", "Reloads by what came of them.", labels=["result"])
        reloads.add_metric(["done"], sums[RELOADS_DONE])
        reloads.add_metric(["refused"], sums[RELOADS_REFUSED])
        yield reloads
        yield GaugeMetricFamily(
            "vaeserve_last_reload_refused", "Whether the last reload was refused: 1 or 0.", value=sums[LAST_REFUSED]
        )
        yield from _of_processes(processes)


def _of_processes(processes: Mapping[int, int]) -> Iterator[Metric]:
    """What the system knows of each process, by the worker's place; nothing where there is no /proc."""
    merged: dict[str, Metric] = {}
    for place, pid in processes.items():
        for family in ProcessCollector(pid=partial(int, pid), registry=None).collect():
            metric = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                metric.add_sample(sample.name, {"worker": str(place)}, sample.value)
    yield from merged.values()
