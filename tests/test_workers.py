"""Processes that serve: how they share a port, how they end, and who takes the place of one that died."""

import asyncio
import errno
import gc
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from service.app import create_app
from service.deployment import deploy
from service.machine import available_cores
from service.processes.supervisor import best_workers
from service.settings import SHIPPED_BUNDLE, Settings
from tests.processes import begun
from tests.service.linear import Linear, linear, write_linear
from tests.serving import Server, serving
from tests.waiting import WITHIN_S, until

ASKED = "/sample?seed=5&n=3&format=json"


def workers(server: Server) -> list[int]:
    """Process ids of all that have ever served, in the order of their start."""
    return pids_in("".join(server.said))


def pids_in(said: str) -> list[int]:
    return [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", said)]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@contextmanager
def holding_still(pids: Sequence[int]) -> Iterator[None]:
    """While these hold still, whoever is left answers."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):  # where it was killed meanwhile
                os.kill(pid, signal.SIGCONT)


def answers_of_each(server: Server, pids: Sequence[int]) -> list[httpx.Response]:
    found = []
    for pid in pids:
        with holding_still([other for other in pids if other != pid]):
            found.append(answer_of_whom_moves(server))
    return found


def answer_of_whom_moves(server: Server) -> httpx.Response:
    """Each connection comes to one worker or another; those to one that holds still are given up."""
    deadline = time.monotonic() + WITHIN_S
    while True:
        try:
            return httpx.get(server.url + ASKED, timeout=httpx.Timeout(WITHIN_S, read=0.5))
        except httpx.ReadTimeout:
            assert time.monotonic() < deadline, "nobody answered"


def started(*arguments: object) -> AbstractContextManager["subprocess.Popen[str]"]:
    """A `vae-serve`, killed with all its workers in the end."""
    command = [sys.executable, "-m", "service", "--shutdown-pause-s", "0", *map(str, arguments)]
    return begun(command, stderr=subprocess.PIPE)


def listening(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Where it listens, and all that it said up to then."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if "running on " in line:
            return line.partition("running on ")[2].split()[0], said
    raise AssertionError(said)


def ended(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A `vae-serve` that does not come to serve."""
    command = [sys.executable, "-m", "service", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * WITHIN_S)


class Unfinished:
    """A request whose headers the server has read, as its 100 Continue says, and whose body it still waits for."""

    def __init__(self, url: str, *, answered_within_s: float = WITHIN_S) -> None:
        body = b'{"n": 3, "seed": 5, "format": "json"}'
        self._last = body[-1:]
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=WITHIN_S)
        self._socket.sendall(
            b"POST /sample HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(body)
        )
        self._socket.settimeout(answered_within_s)
        try:
            assert self._socket.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        except TimeoutError:
            self._socket.close()
            raise
        self._socket.settimeout(WITHIN_S)
        self._socket.sendall(body[:-1])

    def finish(self) -> bytes:
        """The whole answer, up to where the server closed."""
        with self._socket:
            self._socket.sendall(self._last)
            return b"".join(iter(lambda: self._socket.recv(2**16), b""))

    def give_up(self) -> None:
        self._socket.close()


def unfinished_at_whom_moves(server: Server) -> Unfinished:
    deadline = time.monotonic() + WITHIN_S
    while True:
        try:
            return Unfinished(server.url, answered_within_s=0.5)
        except TimeoutError:
            assert time.monotonic() < deadline, "nobody took it"


def port_is_closed(url: str) -> bool:
    parts = urlsplit(url)
    with socket.socket() as caller:
        return caller.connect_ex((parts.hostname, parts.port)) == errno.ECONNREFUSED


# Sharing


@pytest.mark.parametrize(
    ("row_us", "cores", "expected"), [(25, 2, 2), (1000, 2, 1), (1000, 64, 6), (0, 8, 8), (9e9, 4, 1)]
)
def test_workers_are_as_many_as_the_cores_can_feed(row_us: float, cores: int, expected: int) -> None:
    assert best_workers(row_us, cores) == expected


def test_two_workers_answer_with_the_same_bytes_and_share_the_cores() -> None:
    with serving(["--workers", "2"]) as server:
        pids = workers(server)
        first, second = answers_of_each(server, pids)
        assert len(pids) == 2
        assert first.status_code == second.status_code == 200
        assert first.content == second.content
        told = "".join(server.said)
        assert told.count("model fashion@") == 1
        assert f", {-(-available_cores() // 2)} thread" in told
        assert "(2 workers, Ctrl-C ends them)" in told


def test_auto_has_several_workers_for_rows_that_cost_next_to_nothing(tmp_path: Path) -> None:
    write_linear(tmp_path / "small", linear((4, 4, 1), (2,)))
    with serving([str(tmp_path / "small"), "--workers", "auto"]) as server:
        count = len(workers(server))
        assert min(2, available_cores()) <= count <= available_cores()
        assert f"({count} workers, Ctrl-C ends them)" in "".join(server.said)


# Start


@pytest.mark.parametrize("count", [1, 2])
def test_a_broken_bundle_ends_all_workers_with_one_sentence(tmp_path: Path, count: int) -> None:
    bundle = tmp_path / "broken"
    shutil.copytree(SHIPPED_BUNDLE, bundle)
    (bundle / "encoder.onnx").write_bytes(b"no graph")
    finished = ended(bundle, "--workers", count, "--port", 0)
    assert finished.returncode == 2
    (sentence,) = finished.stderr.splitlines()
    assert sentence.startswith(f"vae-serve: {bundle / 'encoder.onnx'}: ")


@pytest.mark.parametrize("count", [1, 2])
def test_a_taken_port_is_told_before_a_model_is_loaded(count: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        finished = ended("no/bundle", "--workers", count, "--port", port)
    assert finished.returncode == 2
    assert finished.stderr == (
        f"vae-serve: port {port}: taken by another process, expected a free one; --port 0 takes any that is free\n"
    )


def test_of_two_that_start_on_one_port_at_once_one_serves() -> None:
    """Both may have taken it before either listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with started("--port", port) as one, started("--port", port) as other:
        until(lambda: one.poll() is not None or other.poll() is not None)
        loser, winner = (one, other) if other.poll() is None else (other, one)
        assert f"vae-serve: port {port}: taken by another process" in loser.communicate()[1]
        assert loser.returncode == 2
        until(lambda: not port_is_closed(f"http://127.0.0.1:{port}"))
        winner.terminate()
        winner.communicate(timeout=WITHIN_S)
        assert winner.returncode == 0


@pytest.mark.parametrize(
    ("host", "sentence"),
    [
        ("203.0.113.1", "host 203.0.113.1: no address of this machine, expected one that it has, or 0.0.0.0 for all"),
        ("not a host", "expected a name or an address of this machine"),
        ("a..b", "no name of a host, expected a name or an address of this machine"),
    ],
)
def test_a_host_that_is_none_of_this_machine_is_told(host: str, sentence: str) -> None:
    finished = ended("--host", host, "--port", 0)
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"vae-serve: host {host}: ")
    assert sentence in finished.stderr


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--workers", "many"], "workers: got 'many', input should be a valid integer"),
        (["--workers", "-1"], "workers: got '-1', input should be greater than or equal to 0"),
        (
            ["--shutdown-pause-s", "5", "--shutdown-timeout-s", "6"],
            "shutdown_timeout_s: got 6, expected at least two more than shutdown_pause_s, which is 5",
        ),
    ],
)
def test_settings_that_cannot_be_are_told(flags: list[str], sentence: str) -> None:
    finished = ended(*flags)
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"vae-serve: {sentence}")


@pytest.mark.parametrize(
    ("variable", "text"), [("bundles", "/models/faces"), ("cors_origins", "https://example.org"), ("bundles", "[1")]
)
def test_a_list_in_the_environment_that_is_none_is_told(
    variable: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"VAE_{variable.upper()}", text)
    finished = ended("--port", 0)
    assert finished.returncode == 2
    assert finished.stderr == f'vae-serve: {variable}: got {text!r}, expected a JSON list, as ["{text}"]\n'


def test_a_list_in_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAE_CORS_ORIGINS", '["https://a.example", "http://localhost:3000"]')
    assert Settings().cors_origins == ("https://a.example", "http://localhost:3000")


def test_help_names_the_extras_that_a_setting_needs() -> None:
    command = [sys.executable, "-m", "service", "--help"]
    wide = {**os.environ, "COLUMNS": "400"}
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=wide).stdout
    assert "vaeserve[openvino]" in told
    assert "vaeserve[traces]" in told


# Death


def test_a_killed_worker_is_replaced_and_the_other_serves_on() -> None:
    with serving(["--workers", "2"]) as server:
        old, other = workers(server)
        expected = httpx.get(server.url + ASKED, timeout=WITHIN_S).content
        with holding_still([other]):
            unfinished = unfinished_at_whom_moves(server)  # which is old
        os.kill(old, signal.SIGKILL)
        unfinished.give_up()
        until(lambda: "".join(server.said).count("Application startup complete") == 3)
        for answer in answers_of_each(server, [other, workers(server)[2]]):
            assert answer.content == expected
        assert f"worker {old} ended by SIGKILL, another one takes its place" in "".join(server.said)


def test_callers_who_stay_come_to_a_worker_that_was_started_after_them() -> None:
    """Those who are busy when it listens are let go by the others with the answer that they wait for."""
    released, is_over, called = threading.Event(), threading.Event(), threading.Semaphore(0)
    with serving(["--workers", "2"]) as server:

        def call() -> None:
            with httpx.Client(timeout=WITHIN_S) as caller:
                while not is_over.is_set():
                    with suppress(httpx.TransportError):  # of the worker that is killed; another one takes the next
                        answer = caller.get(server.url + "/sample?n=256&seed=1")
                        if answer.headers.get("connection") == "close":
                            released.set()
                        called.release()

        _, old = workers(server)
        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(call) for _ in range(8)]
            for _ in range(8):
                called.acquire(timeout=WITHIN_S)
            os.kill(old, signal.SIGKILL)
            is_released = released.wait(WITHIN_S)
            is_over.set()
        assert is_released
        assert [each.result() for each in calls] == [None] * 8


def test_a_worker_that_does_not_move_is_killed_and_replaced() -> None:
    with serving(["--workers", "2", "--wedge-timeout-s", "2"]) as server:
        old, other = workers(server)
        expected = httpx.get(server.url + ASKED, timeout=WITHIN_S).content
        with holding_still([old]):
            until(lambda: "".join(server.said).count("Application startup complete") == 3)
        said = "".join(server.said)
        assert f"worker {old} has not moved for more than 2 s and is killed" in said
        assert f"worker {old} ended by SIGKILL, another one takes its place" in said
        for answer in answers_of_each(server, [other, workers(server)[2]]):
            assert answer.content == expected
        assert len(workers(server)) == 3


def test_what_a_parent_was_stopped_for_is_not_taken_of_the_time_of_its_workers() -> None:
    """They are stopped ahead of it, for as long as it may see, and moved after it."""
    with serving(["--workers", "2", "--wedge-timeout-s", "4"]) as server:
        with holding_still(workers(server)):
            time.sleep(1.5)
            with holding_still([server.process.pid]):
                time.sleep(4)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "reload: serving" in "".join(server.said))  # by a parent that has looked at them
        assert "has not moved" not in "".join(server.said)
        assert len(workers(server)) == 2


def test_workers_that_die_before_they_listen_end_the_service_with_a_sentence() -> None:
    with started("--workers", 2, "--port", 0) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while process.poll() is None:
            with suppress(OSError):
                for child in children.read_text().split():
                    if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes():
                        os.kill(int(child), signal.SIGKILL)
            time.sleep(0.01)
        told = process.communicate()[1]
    assert process.returncode == 1
    expected = "vae-serve: workers: 3 in a row ended before they listened, the last by SIGKILL"
    assert told.splitlines()[-1] == expected


def test_workers_end_with_their_parent() -> None:
    with started("--port", 0, "--workers", 2) as process:
        url, said = listening(process)
        process.kill()
        until(lambda: all(map(is_gone, pids_in(said))))
        until(lambda: port_is_closed(url))


def test_workers_that_load_a_new_version_end_with_their_parent() -> None:
    """They hold still until it is gone, and then find that they shall load, and nobody to tell it to."""
    with started("--port", 0, "--workers", 2) as process:
        url, said = listening(process)
        with holding_still(pids_in(said)):
            process.send_signal(signal.SIGHUP)
            time.sleep(0.5)  # in which it tells them
            process.kill()
        until(lambda: all(map(is_gone, pids_in(said))))
        until(lambda: port_is_closed(url))


def test_the_end_of_a_terminal_ends_no_worker_by_itself() -> None:
    with serving(["--workers", "2"]) as server:
        pids = workers(server)
        for pid in pids:
            os.kill(pid, signal.SIGHUP)
        for answer in answers_of_each(server, pids):
            assert answer.status_code == 200
        assert workers(server) == pids


def test_a_worker_that_the_system_has_no_room_for_is_tried_again_while_the_others_serve() -> None:
    with serving(["--workers", "2"]) as server:
        old, other = workers(server)
        before = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (3, before[1]))
        os.kill(old, signal.SIGKILL)
        until(lambda: "".join(server.said).count("worker - ended before it began (Too many open files)") >= 2)
        assert answers_of_each(server, [other])[0].status_code == 200
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, before)
        until(lambda: "".join(server.said).count("Application startup complete") == 3)


# The end


@pytest.mark.parametrize("count", [1, 2])
def test_what_was_accepted_is_finished_after_the_port_has_closed(count: int) -> None:
    with serving(["--workers", str(count)]) as server:
        expected = httpx.get(server.url + ASKED, timeout=WITHIN_S).content
        unfinished = [Unfinished(server.url) for _ in range(8)]
        server.process.terminate()
        until(lambda: port_is_closed(server.url))
        for request in unfinished:
            head, _, body = request.finish().partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"\r\nconnection: close" in head
            assert body == expected
        assert server.process.wait(WITHIN_S) == 0
        assert all(map(is_gone, workers(server)))


def test_what_began_before_the_end_was_told_is_the_last_on_its_connection() -> None:
    """The server makes the headers of all answers anew each second; this request has those of a while ago."""
    with serving(["--shutdown-pause-s", "8"]) as server, httpx.Client(base_url=server.url) as client:
        unfinished = Unfinished(server.url)
        time.sleep(2.2)
        server.process.terminate()
        until(lambda: client.get("/health/ready").status_code == 503)
        assert b"\r\nconnection: close" in unfinished.finish().partition(b"\r\n\r\n")[0]


@pytest.mark.parametrize("count", [1, 2])
def test_a_process_told_to_end_is_not_ready_but_serves_on_for_the_pause(count: int) -> None:
    with started("--port", 0, "--workers", count, "--shutdown-pause-s", 20) as process:
        url, _ = listening(process)
        with httpx.Client(base_url=url, timeout=WITHIN_S) as client:
            assert "connection" not in client.get("/health/ready").headers
            process.terminate()
            refused: list[httpx.Response] = []

            def is_refused() -> bool:
                refused.append(client.get("/health/ready"))
                return refused[-1].status_code == 503

            until(is_refused)
            assert refused[-1].json()["type"] == "urn:vaeserve:problem:not-ready"
            assert refused[-1].json()["detail"] == "ready: this process was told to end and soon closes its port"

            def is_last() -> bool:  # of one worker, and then of the other
                answer = client.get("/sample?seed=1")
                assert answer.status_code == 200
                return answer.headers.get("connection") == "close"

            until(is_last)
            assert client.get("/health/live").status_code == 200


@pytest.mark.parametrize("count", [1, 2])
def test_a_process_told_to_end_is_gone_in_time_with_what_is_not_finished(count: int) -> None:
    with started("--port", 0, "--workers", count, "--shutdown-timeout-s", 2) as process:
        url, _ = listening(process)
        unfinished = Unfinished(url)
        process.terminate()
        process.communicate(timeout=WITHIN_S)
        assert process.returncode == 0
        unfinished.give_up()


def test_a_worker_that_does_not_move_is_killed_in_time() -> None:
    with started("--port", 0, "--workers", 2, "--shutdown-timeout-s", 2) as process:
        _, said = listening(process)
        os.kill(pids_in(said)[0], signal.SIGSTOP)
        process.terminate()
        _, told = process.communicate(timeout=WITHIN_S)
        assert process.returncode == 1
        assert told.splitlines()[-1] == "vae-serve: a worker did not finish in time what it had accepted"
        assert all(map(is_gone, pids_in(said)))


@pytest.mark.parametrize("count", [1, 2])
def test_ctrl_c_ends_the_service_and_a_second_one_waits_for_nobody(count: int) -> None:
    """A terminal sends it to the workers too."""
    with started("--port", 0, "--workers", count) as process:
        url, _ = listening(process)
        unfinished = Unfinished(url)
        os.killpg(process.pid, signal.SIGINT)
        until(lambda: port_is_closed(url))
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        told = process.communicate(timeout=WITHIN_S)[1]
        assert process.returncode == (-signal.SIGINT if count == 1 else 130)
        assert "Traceback" not in told
        unfinished.give_up()


# Another version of the models


def put(bundle: Path, model: Linear) -> str:
    """The model in place of what is there; its `name@digest`."""
    shutil.rmtree(bundle, ignore_errors=True)
    return write_linear(bundle, model).label


@pytest.mark.parametrize("count", [1, 2])
def test_sighup_brings_a_new_version_to_all_workers_while_they_answer(tmp_path: Path, count: int) -> None:
    bundle = tmp_path / "model"
    old = put(bundle, linear(seed=0))
    with serving([str(bundle), "--workers", str(count)]) as server:
        told: set[tuple[str, bytes]] = set()

        async def ask(client: httpx.AsyncClient, label: str) -> None:
            while label not in dict(told):
                answer = await client.get(ASKED)
                assert answer.status_code == 200
                told.add((answer.headers["x-model"], answer.content))

        async def load() -> None:
            async with httpx.AsyncClient(base_url=server.url, timeout=WITHIN_S) as client:
                await ask(client, old)
                new = put(bundle, linear(seed=1))
                server.process.send_signal(signal.SIGHUP)
                await asyncio.gather(*[ask(client, new) for _ in range(8)])

        asyncio.run(load())
        assert len(told) == 2, "each version has one answer"
        new = write_linear(tmp_path / "same", linear(seed=1), name="model").label
        until(lambda: f"reload: serving {new}" in "".join(server.said))
        for answer in answers_of_each(server, workers(server)):
            assert answer.headers["x-model"] == new
        assert len(workers(server)) == count, "nobody was started anew"


@pytest.mark.parametrize("count", [1, 2])
def test_a_version_that_is_not_proven_is_taken_by_no_worker(tmp_path: Path, count: int) -> None:
    bundle = tmp_path / "model"
    label = put(bundle, linear())
    with serving([str(bundle), "--workers", str(count)]) as server:
        (bundle / "encoder.onnx").write_bytes(b"no graph")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "what was loaded serves on" in "".join(server.said))
        assert f"reload: {bundle / 'encoder.onnx'}: " in "".join(server.said)
        for answer in answers_of_each(server, workers(server)):
            assert (answer.status_code, answer.headers["x-model"]) == (200, label)


def test_a_replaced_version_leaves_no_memory_or_threads_behind(tmp_path: Path) -> None:
    bundle = tmp_path / "model"
    write_linear(bundle, linear())
    app = create_app(Settings(bundles=(bundle,)))
    gc.collect()
    gc.freeze()
    try:
        gone = weakref.ref(app.state.deployment.models.default.engine)
        app.state.deployment = deploy(app.state.deployment.settings, metrics=app.state.metrics, cores=1)
        assert gone() is None
    finally:
        gc.unfreeze()
