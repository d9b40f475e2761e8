"""A reload that an admin asks one of several workers for: all of them take the new version, or none does."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from service.access.keys import Scope
from tests.processes import begun
from tests.service.keyring import bearer, lines, tokens, write
from tests.service.linear import linear, write_linear
from tests.service.test_errors import problem
from tests.serving import Server, serving
from tests.test_workers import holding_still, workers
from tests.waiting import WITHIN_S, until

HELD = tokens("admin")
ADMIN = bearer(HELD["admin"])

WAITS = "reload: one is under way, another one waits for it (SIGHUP)"

# A process that serves by itself and loads nothing anew while a file is there.
HELD_LOADS = """
import sys, time
from pathlib import Path
from service import reload
from service.__main__ import app

load, gate = reload.reloaded, Path(sys.argv[1])

def held(*given):
    while gate.exists():
        time.sleep(0.01)
    return load(*given)

reload.reloaded = held
del sys.argv[1:5]  # and the interpreter, -m, service
app()
"""

# One that waits for its workers no longer than a test would.
IMPATIENT = """
import sys
from service.__main__ import app
from service.processes import supervisor

supervisor._ANSWER_S = 5
del sys.argv[1:4]  # the interpreter, -m, service
app()
"""


def put(bundle: Path, seed: int) -> str:
    """Another version in the place of what is there; its `name@digest`."""
    shutil.rmtree(bundle, ignore_errors=True)
    return write_linear(bundle, linear(seed=seed)).label


def arguments(folder: Path, workers: int) -> list[str]:
    keys = write(folder / "keys.toml", lines(HELD, scopes=(Scope.READ, Scope.ADMIN)))
    return [str(folder / "model"), "--workers", str(workers), "--api-keys-file", str(keys)]


def reload(server: Server) -> httpx.Response:
    return httpx.post(f"{server.url}/models/model/reload", headers=ADMIN, timeout=WITHIN_S)


def answer_of_whom_moves(server: Server, *, timeout_ms: int) -> httpx.Response:
    """What a worker says that does not hold still; connections to one that does are given up."""
    found: list[httpx.Response] = []

    def is_answered() -> bool:
        with suppress(httpx.ReadTimeout):
            url, headers = f"{server.url}/models/model/reload", ADMIN | {"x-timeout-ms": str(timeout_ms)}
            found.append(httpx.post(url, headers=headers, timeout=httpx.Timeout(WITHIN_S, read=2)))
        return bool(found)

    until(is_answered)
    return found[0]


def metrics(server: Server) -> str:
    return httpx.get(f"{server.url}/metrics", timeout=WITHIN_S, headers=ADMIN).text


def labels(server: Server) -> set[str]:
    """What many new connections, which the kernel spreads over the workers, are answered by."""
    asked = [httpx.get(f"{server.url}/sample?seed=1", headers=ADMIN, timeout=WITHIN_S) for _ in range(24)]
    assert {answer.status_code for answer in asked} == {200}
    return {answer.headers["x-model"] for answer in asked}


@pytest.mark.parametrize("workers", [1, 2])
def test_when_the_answer_comes_every_worker_serves_the_new_version(tmp_path: Path, workers: int) -> None:
    before = put(tmp_path / "model", 0)
    with serving(arguments(tmp_path, workers)) as server:
        assert labels(server) == {before}
        for seed in (1, 2, 3):
            now = put(tmp_path / "model", seed)
            answer = reload(server)
            assert answer.status_code == 200
            told = answer.json()
            assert [f"{told['model']}@{told[name]}" for name in ("digest_before", "digest")] == [before, now]
            assert labels(server) == {now}
            said = re.findall(r"reload: serving (.*)", "".join(server.said))
            assert len(said) == seed, "once, however many workers there are"
            assert re.fullmatch(rf"{now}: 6x5x3, latents 4, CPUExecutionProvider, fp32, \d+ threads?", said[-1])
            before = now


@pytest.mark.parametrize("workers", [1, 2])
def test_a_version_that_is_not_proven_is_taken_by_none_and_the_answer_says_why(tmp_path: Path, workers: int) -> None:
    before = put(tmp_path / "model", 0)
    with serving(arguments(tmp_path, workers)) as server:
        (tmp_path / "model" / "decoder.onnx").write_bytes(b"no graph")
        detail = problem(reload(server), 409, "reload-refused")["detail"]
        expected = f"reload: {tmp_path / 'model' / 'decoder.onnx'}: has 8 bytes, the manifest says "
        assert detail.startswith(expected)
        assert detail.endswith("; what was loaded serves on")
        assert labels(server) == {before}
        now = put(tmp_path / "model", 1)
        assert f"model@{reload(server).json()['digest']}" == now, "the next one is not kept from it"
        assert labels(server) == {now}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_becomes_of_a_signal_is_counted(tmp_path: Path, workers: int) -> None:
    put(tmp_path / "model", 0)
    with serving(arguments(tmp_path, workers)) as server:

        def counted() -> list[float]:
            names = ('vaeserve_reloads_total{result="done"}', 'vaeserve_reloads_total{result="refused"}')
            told = dict(line.rsplit(" ", 1) for line in metrics(server).splitlines())
            return [float(told[name]) for name in (*names, "vaeserve_last_reload_refused")]

        assert counted() == [0, 0, 0]
        (tmp_path / "model" / "decoder.onnx").write_bytes(b"no graph")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: counted() == [0, 1, 1])
        put(tmp_path / "model", 1)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: counted() == [1, 1, 0])
        assert "".join(server.said).count("reload: begun (SIGHUP)") == 2


def test_a_signal_that_has_to_wait_for_a_load_is_told(tmp_path: Path) -> None:
    put(tmp_path / "model", 0)
    gate = tmp_path / "gate"
    gate.touch()
    with serving(arguments(tmp_path, 1), inside=[sys.executable, "-c", HELD_LOADS, str(gate)]) as server:
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "reload: begun (SIGHUP)" in "".join(server.said))
        server.process.send_signal(signal.SIGHUP)
        until(lambda: WAITS in "".join(server.said))
        gate.unlink()
        until(lambda: "".join(server.said).count("reload: serving") == 2)


def test_what_has_to_wait_for_a_worker_is_told_and_a_caller_does_not_wait_beyond_the_deadline(tmp_path: Path) -> None:
    put(tmp_path / "model", 0)
    with serving(arguments(tmp_path, 2)) as server:
        now = put(tmp_path / "model", 1)
        with holding_still(workers(server)[:1]):
            server.process.send_signal(signal.SIGHUP)
            until(lambda: "reload: begun (SIGHUP)" in "".join(server.said))
            server.process.send_signal(signal.SIGHUP)
            until(lambda: WAITS in "".join(server.said))
            problem(answer_of_whom_moves(server, timeout_ms=50), 504, "deadline-passed")
            until(lambda: WAITS.replace("SIGHUP", "key admin") in "".join(server.said))
            assert "reload: serving" not in "".join(server.said)
        until(lambda: "reload: begun (key admin)" in "".join(server.said))
        until(lambda: labels(server) == {now})


def test_a_worker_that_does_not_answer_is_named_and_replaced_and_the_reload_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "model", 0)
    with serving(arguments(tmp_path, 2), inside=[sys.executable, "-c", IMPATIENT]) as server:
        first = workers(server)[0]
        now = put(tmp_path / "model", 1)
        with holding_still([first]):
            server.process.send_signal(signal.SIGHUP)
            expected = f"reload: worker {first} has not answered within 5 s and is killed; what was loaded serves on"
            until(lambda: expected in "".join(server.said))
        until(lambda: f"worker {first} ended by SIGKILL, another one takes its place" in "".join(server.said))
        until(lambda: f"reload: serving {now}" in "".join(server.said))
        assert "reload: begun (workers differ)" in "".join(server.said)
        assert labels(server) == {now}


def test_admins_who_ask_at_once_are_answered_one_after_the_other(tmp_path: Path) -> None:
    put(tmp_path / "model", 0)
    with serving(arguments(tmp_path, 2)) as server:
        now = put(tmp_path / "model", 1)

        async def ask() -> list[httpx.Response]:
            async with httpx.AsyncClient(timeout=WITHIN_S, headers=ADMIN) as client:
                return await asyncio.gather(*[client.post(f"{server.url}/models/model/reload") for _ in range(6)])

        answers = asyncio.run(ask())
        assert {answer.status_code for answer in answers} == {200}
        assert {f"model@{json.loads(answer.text)['digest']}" for answer in answers} == {now}
        assert labels(server) == {now}


def test_workers_that_came_to_serve_different_versions_try_again_until_they_serve_one(tmp_path: Path) -> None:
    before = put(tmp_path / "model", 0)
    with serving(arguments(tmp_path, 2)) as server:
        first, second = workers(server)
        now = put(tmp_path / "model", 1)
        with holding_still([first]):
            os.kill(second, signal.SIGKILL)
            until(lambda: "".join(server.said).count("Application startup complete") == 3)
            shutil.move(tmp_path / "model", tmp_path / "away")  # before the first one looks
        until(lambda: "what was loaded serves on" in "".join(server.said))
        assert labels(server) == {before, now}
        assert "\nvaeserve_served_versions 2.0\n" in metrics(server)
        shutil.move(tmp_path / "away", tmp_path / "model")
        until(lambda: labels(server) == {now})
        assert "\nvaeserve_served_versions 1.0\n" in metrics(server)


def test_a_worker_that_does_not_move_keeps_a_reload_waiting_until_it_is_replaced(tmp_path: Path) -> None:
    put(tmp_path / "model", 0)
    with serving([*arguments(tmp_path, 2), "--wedge-timeout-s", "2"]) as server:
        now = put(tmp_path / "model", 1)
        with holding_still(workers(server)[:1]):
            server.process.send_signal(signal.SIGHUP)
            until(lambda: f"reload: serving {now}" in "".join(server.said))
            until(lambda: "".join(server.said).count("Application startup complete") == 3)
        assert labels(server) == {now}


def test_a_signal_before_any_worker_answers_is_not_lost(tmp_path: Path) -> None:
    put(tmp_path / "model", 0)
    command = [sys.executable, "-m", "service", "--port", "0", *arguments(tmp_path, 2)]
    with begun(command, stderr=subprocess.PIPE) as process:
        assert process.stderr
        said = []
        while not (said and "model model" in said[-1]):  # it is read, and about to be served
            said.append(process.stderr.readline())
        now = put(tmp_path / "model", 1)
        process.send_signal(signal.SIGHUP)
        while f"reload: serving {now}" not in said[-1]:
            said.append(process.stderr.readline())
            assert said[-1], "".join(said)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WITHIN_S) == 0
    assert "what was loaded serves on" not in "".join(said)


def test_a_worker_that_starts_meanwhile_comes_to_serve_the_same(tmp_path: Path) -> None:
    put(tmp_path / "model", 0)
    with serving(arguments(tmp_path, 2)) as server:
        os.kill(workers(server)[0], signal.SIGKILL)
        until(lambda: "ended by SIGKILL" in "".join(server.said))  # up to then its port may take a connection yet
        now = put(tmp_path / "model", 1)
        until(lambda: reload(server).status_code == 200)
        until(lambda: "".join(server.said).count("Application startup complete") == 3)
        until(lambda: labels(server) == {now})
