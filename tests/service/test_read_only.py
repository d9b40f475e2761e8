"""The service writes no file: it serves where none can be written, as in a container with a read-only root."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.observation.tally import CELLS
from tests.service.linear import Bundles
from tests.service.wire import SAFETENSORS, pixels, png, tensors
from tests.serving import Server, serving

# Nowhere to keep anything: no home, no place for temporary files, and a folder to run in that takes none.
HOMELESS = ("env", "-C", "/proc", "HOME=/nonexistent", "TMPDIR=/nonexistent")

# What a container has of its own, writable or not, whatever its root is.
OF_THE_KERNEL = ("/proc", "/sys", "/dev")


def read_only() -> tuple[str, ...]:
    """A command that becomes another, for which every file system but those of the kernel is read-only."""
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    remounts = [f"mount -o remount,bind,ro {shlex.quote(at)}" for at in points if not at.startswith(OF_THE_KERNEL)]
    as_root = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    return ("unshare", "--mount", *as_root, "sh", "-c", f'{" && ".join(remounts)} && exec "$@"', "sh")


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """`read_only`, where this machine lets a test mount; it is seen to refuse a file."""
    command = read_only()
    if (tried := subprocess.run([*command, "true"], capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"no file system can be made read-only here: {tried.stderr.strip()}")
    for folder in (tmp_path_factory.getbasetemp(), Path("/tmp"), Path.cwd()):  # noqa: S108  that nothing is written to it
        refused = subprocess.run([*command, "touch", folder / "file"], capture_output=True, text=True, check=False)
        assert "Read-only file system" in refused.stderr
    return command


@pytest.fixture(params=["1", "2"], ids=["one process", "two workers"])
def server(request: pytest.FixtureRequest, sealed: tuple[str, ...], bundles: Bundles) -> Iterator[Server]:
    with serving([*bundles.arguments, "--workers", request.param], inside=(*sealed, *HOMELESS)) as running:
        yield running


def test_every_kind_of_work_is_done_where_no_file_can_be_written(server: Server) -> None:
    large = pixels(1, (1100, 1000, 3))[0]
    body = tensors(z=np.zeros((2000, 4), np.float32))
    with httpx.Client(base_url=server.url, timeout=30) as http:
        form = http.post("/encode", files=[("images", ("large.png", png(large)))] * 2)
        assert int(form.request.headers["content-length"]) > 2**22  # more than a parser of forms keeps in memory
        bulk = http.post("/decode?format=safetensors", content=body, headers={"content-type": SAFETENSORS})
        moving = http.get("/interpolate?seeds=1,2&format=gif")
        answers = [form, bulk, moving, http.get("/metrics"), http.get("/docs"), http.get("/models")]
        assert [answer.status_code for answer in answers] == [200] * len(answers)
        server.process.send_signal(signal.SIGHUP)
        until_said(server, "reload: serving colour@")
        assert http.get("/sample?seed=1").status_code == 200


def test_it_serves_without_a_home_and_without_a_place_for_temporary_files(bundles: Bundles) -> None:
    with serving(bundles.arguments, inside=HOMELESS) as running:
        assert httpx.get(f"{running.url}/sample?seed=1", timeout=30).status_code == 200


def test_workers_that_can_share_no_memory_are_refused_in_a_sentence(sealed: tuple[str, ...], bundles: Bundles) -> None:
    unshared = 'mount --bind /dev/shm /dev/shm && mount -o remount,bind,ro /dev/shm && exec "$@"'
    command = [*sealed, "sh", "-c", unshared, "sh", *HOMELESS, sys.executable, "-m", "service", *bundles.arguments]
    ended = subprocess.run([*command, "--workers", "2", "--port", "0"], capture_output=True, text=True, check=False)
    assert ended.stderr == (
        f"vae-serve: workers: got Read-only file system, expected {2 * CELLS * 8:,} bytes of shared memory (/dev/shm); "
        "--workers 1 needs none\n"
    )
    assert ended.returncode == 2


def until_said(server: Server, words: str) -> None:
    """Wait for a line of the log; a test that waits for ever fails."""
    ends = time.monotonic() + 20
    while not any(words in line for line in server.said):
        assert time.monotonic() < ends, "".join(server.said)
        time.sleep(0.01)
