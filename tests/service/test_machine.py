"""What a machine offers: distributions of onnxruntime, cores by affinity and by quota."""

import os
import resource
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from service import machine
from service.machine import BadEngine, available_cores, raise_open_files, require_one_distribution


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Pretend that exactly these distributions are installed."""

    def version(name: str) -> str:
        if name in names:
            return "1.30.0"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"])
def test_one_distribution_of_onnxruntime_is_right(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    installed(monkeypatch, name)
    assert require_one_distribution() == f"{name} 1.30.0"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ((), "none"),
        (("onnxruntime", "onnxruntime-gpu"), "onnxruntime 1.30.0 and onnxruntime-gpu 1.30.0"),
        (("onnxruntime-gpu", "onnxruntime-openvino"), "onnxruntime-gpu 1.30.0 and onnxruntime-openvino 1.30.0"),
    ],
)
def test_none_or_two_distributions_of_onnxruntime_are_refused(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], found: str
) -> None:
    installed(monkeypatch, *names)
    with pytest.raises(BadEngine, match=f"onnxruntime: got {found}, expected exactly one distribution; install one of"):
        require_one_distribution()


def version_2(root: Path, text: str) -> None:
    (root / "cpu.max").write_text(text)


def version_1(root: Path, text: str) -> None:
    (root / "cpu").mkdir()
    quota, period = text.split()
    (root / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (root / "cpu" / "cpu.cfs_period_us").write_text(period + "\n")


@pytest.mark.parametrize(
    ("write", "text", "quota"),
    [
        (version_2, "max 100000\n", None),
        (version_2, "200000 100000\n", 2.0),
        (version_2, "150000 100000\n", 1.5),
        (version_2, "5000 100000\n", 0.05),
        (version_1, "-1 100000", None),
        (version_1, "300000 100000", 3.0),
    ],
)
def test_the_cgroups_quota_is_read(
    tmp_path: Path, write: Callable[[Path, str], None], text: str, quota: float | None
) -> None:
    write(tmp_path, text)
    assert machine._cgroup_quota(tmp_path, within=Path()) == quota  # noqa: SLF001


def test_a_cgroup_is_bounded_by_those_above_it(tmp_path: Path) -> None:
    """As a unit of systemd is, in its slice; the root of the tree has no such file."""
    unit = tmp_path / "system.slice" / "vae.service"
    unit.mkdir(parents=True)
    within = unit.relative_to(tmp_path)
    (unit / "cpu.max").write_text("300000 100000\n")
    assert machine._cgroup_quota(tmp_path, within=within) == 3  # noqa: SLF001
    (unit.parent / "cpu.max").write_text("150000 100000\n")
    assert machine._cgroup_quota(tmp_path, within=within) == 1.5  # noqa: SLF001
    (unit.parent / "cpu.max").write_text("max 100000\n")
    assert machine._cgroup_quota(tmp_path, within=within) == 3  # noqa: SLF001


@pytest.mark.parametrize(
    ("told", "place"),
    [
        ("0::/system.slice/a.service\n", "system.slice/a.service"),
        ("0::/\n", "."),
        ("4:cpu:/a\n0::/b\n", "b"),
        ("", "."),
    ],
)
def test_a_process_knows_its_cgroup(tmp_path: Path, told: str, place: str) -> None:
    (tmp_path / "cgroup").write_text(told)
    assert machine._own_cgroup(tmp_path / "cgroup") == Path(place)  # noqa: SLF001
    assert machine._own_cgroup(tmp_path / "nowhere") == Path()  # noqa: SLF001


def test_no_cgroup_sets_no_bound(tmp_path: Path) -> None:
    assert machine._cgroup_quota(tmp_path, within=Path()) is None  # noqa: SLF001


@pytest.mark.parametrize(("quota", "affinity", "cores"), [(None, 6, 6), (2.5, 6, 2), (0.5, 6, 1), (16.0, 6, 6)])
def test_cores_are_the_affinity_bounded_by_the_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, affinity: int, cores: int
) -> None:
    monkeypatch.setattr(machine, "_cgroup_quota", lambda _root, **_within: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(affinity)), raising=False)
    assert available_cores() == cores


@pytest.mark.parametrize(
    ("soft", "hard", "bound"),
    [
        (1024, 4096, 2000),
        (1024, resource.RLIM_INFINITY, 2000),
        (1024, 1500, 1500),
        (1024, 1024, 1024),
        (3000, 4096, 3000),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 2000),
    ],
)
def test_open_files_are_raised_as_far_as_the_hard_bound_lets_and_never_lowered(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, bound: int
) -> None:
    held = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: held[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, bounds: held.append(bounds))
    assert raise_open_files(2000) == bound
    assert held[1:] == ([(bound, hard)] if soft in range(bound) else [])
