"""A worker that its parent tells to load, beside what tests/test_workers.py asks of whole ones."""

import asyncio
from multiprocessing import Pipe
from pathlib import Path

import pytest
from fastapi import FastAPI

from service.app import create_app
from service.processes.messages import Load, Loaded, Message, Refused, Swap, Swapped
from service.processes.server import Server
from service.processes.worker import _obey, _Parent
from service.settings import Settings
from tests.service.linear import linear, write_linear
from tests.service.test_reload import put, served_versions
from tests.waiting import WITHIN_S


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    monkeypatch.setattr(Server, "_limit", lambda _server: None)  # which would end these tests
    monkeypatch.setattr("service.observation.logs.config", lambda _settings: None)  # the log is the tests' own
    write_linear(tmp_path / "one", linear(seed=0))
    return create_app(Settings(bundles=(tmp_path / "one",)), cores=1)


def told(app: FastAPI, *orders: Message) -> list[Message]:
    """What a worker answers to these orders, one after the other."""

    async def scenario() -> list[Message]:
        ours, its = Pipe()
        server = Server(app, app.state.deployment.settings, on_listening=lambda: None)
        obeying = asyncio.create_task(_obey(server, app, _Parent(its)))
        answers = []
        for order in orders:
            ours.send(order)
            assert await asyncio.to_thread(ours.poll, WITHIN_S)
            answers.append(ours.recv())
        ours.close()
        await asyncio.wait_for(obeying, WITHIN_S)  # as its parent is gone
        its.close()
        return answers

    return asyncio.run(scenario())


def test_what_is_loaded_is_served_once_the_parent_says_so(app: FastAPI, tmp_path: Path) -> None:
    before = app.state.deployment
    now = f"one@{put(tmp_path, 'one', 2)}"
    (loaded,) = told(app, Load("one"))
    assert isinstance(loaded, Loaded)
    assert loaded.labels == (now,)
    assert (app.state.deployment, served_versions(app)) == (before, 0)
    assert told(app, Load("one"), Swap())[1] == Swapped()
    assert app.state.deployment.models.labels == (now,)
    assert served_versions(app) == 1


def test_what_is_not_proven_is_refused_in_words(app: FastAPI, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "one" / "encoder.onnx").write_bytes(b"no graph")
    (refused,) = told(app, Load(None))
    assert isinstance(refused, Refused)
    assert refused.sentence.startswith(f"{tmp_path / 'one' / 'encoder.onnx'}: has 8 bytes, the manifest says ")
    assert "Traceback" not in caplog.text


def test_a_mistake_of_ours_is_refused_and_logged_with_where_it_happened(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.deployment.read", lambda _path: 1 / 0)
    assert told(app, Load("one")) == [Refused("ZeroDivisionError('division by zero')")]
    assert "Traceback" in caplog.text
    assert "lambda _path: 1 / 0" in caplog.text
