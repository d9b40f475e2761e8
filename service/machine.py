"""What this machine offers the engine: one onnxruntime distribution, cores that this process may use, instructions,
open files.
"""

import os
import resource
from contextlib import suppress
from importlib import metadata
from pathlib import Path

# They share one importable module, so that two of them overwrite each other's files in silence.
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")


class BadEngine(Exception):
    """The engine cannot run as it was asked to; the process stops with this sentence."""


def require_one_distribution() -> str:
    """Name and version of the one onnxruntime distribution in this environment.

    Raises:  BadEngine if there is none, or more than one
    """
    found = []
    for name in _DISTRIBUTIONS:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    if len(found) != 1:
        raise BadEngine(
            f"onnxruntime: got {' and '.join(found) or 'none'}, expected exactly one distribution; "
            "install one of vaeserve[cpu], vaeserve[gpu], vaeserve[openvino] in an empty environment"
        )
    return found[0]


def available_cores() -> int:
    """Cores that this process may use: its affinity, bounded by the cgroup's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(Path("/sys/fs/cgroup"), within=_own_cgroup())
    return cores if quota is None else max(1, min(cores, int(quota)))


def raise_open_files(wanted: int) -> int:
    """Let this process and its children have so many files open, as far as they may; the bound that there is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    bound = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < bound:
        resource.setrlimit(resource.RLIMIT_NOFILE, (bound, hard))
        return bound
    return soft if soft != resource.RLIM_INFINITY else wanted


def compute_behind() -> None:
    """Have this thread, when it becomes ready, wait for whoever has a core, as Linux's policy for batch work does: an
    event loop is not interrupted by those that compute for it. Its share of the cores stays; other systems have no such
    policy.
    """
    if hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):  # a sandbox may not let it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the processor can, in Linux's words, as `avx512_bf16`; nothing where no such file tells."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    told = (line.partition(":") for line in lines)
    return next((frozenset(flags.split()) for name, _, flags in told if name.strip() == "flags"), frozenset())


def _own_cgroup(told: Path = Path("/proc/self/cgroup")) -> Path:
    """Where this process is in version 2's tree: at its root in a container, deep inside it as a unit of systemd."""
    try:
        lines = told.read_text().splitlines()
    except OSError:
        return Path()
    return next((Path(line[len("0::/") :]) for line in lines if line.startswith("0::/")), Path())


def _cgroup_quota(root: Path, *, within: Path) -> float | None:
    """CPUs that the cgroup and all above it grant, None where none sets a bound; version 2 first, then version 1."""
    granted = [_granted(root / place / "cpu.max") for place in (within, *within.parents)]
    bounds = [cpus for cpus in granted if cpus is not None]
    if bounds:
        return min(bounds)
    try:
        quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
        period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
    except OSError:
        return None
    return None if quota == "-1" else int(quota) / int(period)


def _granted(limit: Path) -> float | None:
    try:
        quota, period = limit.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)
