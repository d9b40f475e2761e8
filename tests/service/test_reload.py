"""POST /models/{name}/reload: who may ask for it, what comes of it, and what serves on if nothing does."""

import asyncio
import gc
import json
import logging
import os
import re
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from service import lane
from service.access.keys import Scope
from service.app import create_app
from service.deployment import Deployment, reloaded
from service.models import Model
from service.settings import Settings
from tests.service.keyring import bearer, lines, tokens, write
from tests.service.linear import linear, write_linear
from tests.service.test_errors import problem
from tests.serving import in_process
from tests.waiting import WITHIN_S

HELD = tokens("admin", "reader")
ADMIN, READER = bearer(HELD["admin"]), bearer(HELD["reader"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two bundles, and the keys of one who may ask for all and one who may read."""
    write_linear(tmp_path / "one", linear(seed=0))
    write_linear(tmp_path / "other", linear(seed=1))
    write(
        tmp_path / "keys.toml",
        lines({"admin": HELD["admin"]}, scopes=(Scope.READ, Scope.ADMIN))
        + lines({"reader": HELD["reader"]}, scopes=(Scope.READ,)),
    )
    return tmp_path


@pytest.fixture
def app(folder: Path) -> FastAPI:
    return serving(folder)


def serving(folder: Path) -> FastAPI:
    settings = Settings(bundles=(folder / "one", folder / "other"), api_keys_file=folder / "keys.toml")
    return create_app(settings, cores=1)


def put(folder: Path, name: str, seed: int, *, named: str | None = None) -> str:
    """Another model in the place of what is there; its digest."""
    shutil.rmtree(folder / name)
    write_linear(folder / "made" / (named or name), linear(seed=seed))
    (folder / "made" / (named or name)).rename(folder / name)
    return str(digest_at(folder / name))


def digest_at(path: Path) -> str:
    found = re.search(r'"digest": ?"([0-9a-f]{64})"', (path / "manifest.json").read_text())
    assert found
    return found[1]


def reload(app: FastAPI, name: str = "one") -> httpx.Response:
    async def ask() -> httpx.Response:
        async with in_process(app, headers=ADMIN) as client:
            return await client.post(f"/models/{name}/reload")

    return asyncio.run(ask())


def served_versions(app: FastAPI) -> float:
    (count,) = counted(app, "vaeserve_served_versions")
    return count


def counted(app: FastAPI, name: str) -> list[float]:
    """Each value of a metric."""
    (family,) = [each for each in app.state.metrics.families() if each.name == name]
    return [float(sample.value) for sample in family.samples]


class Held:
    """Loading anew, which waits until the test lets it go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        monkeypatch.setattr("service.reload.reloaded", self._load)

    def _load(self, deployment: Deployment, name: str | None) -> Deployment:
        assert self.go_on.wait(30)
        return reloaded(deployment, name)


def label(app: FastAPI, name: str) -> str:
    """What an answer says that it is of."""

    async def ask() -> httpx.Response:
        async with in_process(app, headers=READER) as client:
            return await client.get(f"/sample?seed=1&model={name}")

    answer = asyncio.run(ask())
    assert answer.status_code == 200
    return str(answer.headers["x-model"])


def test_a_new_version_is_served_and_both_digests_are_told(folder: Path, app: FastAPI) -> None:
    before = digest_at(folder / "one")
    now = put(folder, "one", 2)
    assert now != before
    answer = reload(app)
    assert answer.status_code == 200
    assert answer.json() == {"model": "one", "digest": now, "digest_before": before}
    assert label(app, "one") == f"one@{now}"


def test_metrics_count_the_version_that_is_served(folder: Path, app: FastAPI) -> None:
    assert served_versions(app) == 0, "nothing is, before the application starts"
    put(folder, "one", 2)
    reload(app)
    assert served_versions(app) == 1


def test_metrics_count_reloads_and_tell_whether_the_last_one_was_refused(folder: Path, app: FastAPI) -> None:
    assert (counted(app, "vaeserve_reloads"), counted(app, "vaeserve_last_reload_refused")) == ([0, 0], [0])
    (folder / "one" / "encoder.onnx").write_bytes(b"no graph")
    reload(app)
    reload(app)
    assert (counted(app, "vaeserve_reloads"), counted(app, "vaeserve_last_reload_refused")) == ([0, 2], [1])
    put(folder, "one", 2)
    reload(app)
    assert (counted(app, "vaeserve_reloads"), counted(app, "vaeserve_last_reload_refused")) == ([1, 2], [0])


def test_a_version_that_has_not_changed_stays_loaded(folder: Path, app: FastAPI) -> None:
    same, model = digest_at(folder / "one"), app.state.deployment.models.default
    assert reload(app).json() == {"model": "one", "digest": same, "digest_before": same}
    assert app.state.deployment.models.default is model


def test_of_all_models_those_that_have_not_changed_stay_loaded(folder: Path, app: FastAPI) -> None:
    before: Deployment = app.state.deployment
    now = put(folder, "other", 3)
    after = reloaded(before, None)
    assert after.models.default is before.models.default
    assert after.models.find("other").manifest.digest == now


@pytest.mark.parametrize("name", ["one", None])
def test_the_same_graphs_under_another_licence_are_another_model(folder: Path, app: FastAPI, name: str | None) -> None:
    before: Deployment = app.state.deployment
    manifest = json.loads((folder / "one" / "manifest.json").read_text())
    (folder / "one" / "manifest.json").write_text(json.dumps(manifest | {"licence": "of the day"}))
    after = reloaded(before, name).models.default
    assert (after.label, after.manifest.licence) == (before.models.default.label, "of the day")


@pytest.mark.parametrize("name", ["one", None])
def test_a_model_whose_runs_fail_is_loaded_anew(app: FastAPI, name: str | None) -> None:
    before: Deployment = app.state.deployment
    for _ in range(3):
        before.models.default.decoder.went_badly()
    assert reloaded(before, name).models.default is not before.models.default


def test_two_models_that_changed_places_are_loaded_anew(folder: Path, app: FastAPI) -> None:
    """Each is read from where it is by now when it is asked for by name."""
    for old, new in (("one", "between"), ("other", "one"), ("between", "other")):
        (folder / old).rename(folder / new)
    after = reloaded(app.state.deployment, None).models
    assert (after.find("one").path, after.find("other").path) == (folder / "other", folder / "one")


def test_other_models_stay_as_they_are(folder: Path, app: FastAPI) -> None:
    other: Model = app.state.deployment.models.find("other")
    put(folder, "one", 2)
    put(folder, "other", 3)
    assert reload(app).status_code == 200
    assert app.state.deployment.models.find("other") is other
    assert label(app, "other") == other.label
    assert app.state.deployment.models.default.manifest.name == "one"


@pytest.mark.parametrize("name", ["one", None])
def test_old_and_new_share_the_room_for_pixels_and_the_patience_of_callers(app: FastAPI, name: str | None) -> None:
    before: Deployment = app.state.deployment
    after = reloaded(before, name)
    assert after.models is not before.models
    for shared in ("lane", "picture_room", "answer_room", "patience", "body_room"):
        assert getattr(after, shared) is getattr(before, shared)


def test_the_log_says_who_asked_what_is_served_and_what_runs_it(
    folder: Path, app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    now = put(folder, "one", 2)
    reload(app)
    assert [record.message for record in caplog.records if record.message.startswith("reload: ")] == [
        "reload: begun (key admin)",
        f"reload: serving one@{now}: 6x5x3, latents 4, CPUExecutionProvider, fp32, 1 thread",
    ]


def test_a_version_that_is_not_proven_is_409_and_the_old_one_serves_on(
    folder: Path, app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    before = label(app, "one")
    (folder / "one" / "encoder.onnx").write_bytes(b"no graph")
    detail = problem(reload(app), 409, "reload-refused")["detail"]
    assert detail.startswith(f"reload: {folder / 'one' / 'encoder.onnx'}: has 8 bytes, the manifest says ")
    assert detail.endswith("; what was loaded serves on")
    assert detail in caplog.text
    assert [record for record in caplog.records if record.exc_info] == []
    assert label(app, "one") == before


def test_a_mistake_of_ours_is_409_and_logged_with_where_it_happened(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = label(app, "one")
    monkeypatch.setattr("service.deployment.read", lambda _path: 1 / 0)
    detail = problem(reload(app), 409, "reload-refused")["detail"]
    assert detail == "reload: ZeroDivisionError('division by zero'); what was loaded serves on"
    assert "Traceback" in caplog.text
    assert "lambda _path: 1 / 0" in caplog.text
    assert label(app, "one") == before


def test_a_model_of_another_name_is_409(folder: Path, app: FastAPI) -> None:
    before = label(app, "one")
    put(folder, "one", 2, named="new")
    assert problem(reload(app), 409, "reload-refused")["detail"] == (
        f"reload: {folder / 'one'}: got a model named new, expected one; what was loaded serves on"
    )
    assert label(app, "one") == before


@pytest.mark.parametrize("name", ["none", "one@0000", "on", "ONE"])
def test_a_model_that_is_not_loaded_is_404(app: FastAPI, name: str) -> None:
    assert problem(reload(app, name), 404, "not-found")["detail"].startswith(
        f"path.name: got {name}, expected one of one@"
    )


def test_a_digest_says_which_version_is_to_be_replaced(folder: Path, app: FastAPI) -> None:
    before = digest_at(folder / "one")
    now = put(folder, "one", 2)
    assert reload(app, f"one@{before}").json()["digest"] == now
    problem(reload(app, f"one@{before}"), 404, "not-found")


@pytest.mark.parametrize("name", ["colour", "none"])
def test_without_keys_nobody_is_an_admin(client: httpx.Client, name: str) -> None:
    assert problem(client.post(f"/models/{name}/reload"), 403, "keys-off")["detail"] == (
        "reload: got a service without keys, expected one with them and an admin's, or SIGHUP"
    )


def test_a_key_for_reading_is_403(app: FastAPI) -> None:
    async def ask() -> httpx.Response:
        async with in_process(app, headers=READER) as client:
            return await client.post("/models/one/reload")

    detail = problem(asyncio.run(ask()), 403, "key-lacks-scope")["detail"]
    assert detail == "key: got reader, which is for read, expected one for admin"


def test_another_method_is_405(client: httpx.Client) -> None:
    answer = client.get("/models/colour/reload")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_reloads_are_done_one_after_the_other(folder: Path, app: FastAPI) -> None:
    put(folder, "one", 2)
    now = put(folder, "other", 3)

    async def ask() -> list[httpx.Response]:
        async with in_process(app, headers=ADMIN) as client:
            return await asyncio.gather(*[client.post(f"/models/{name}/reload") for name in ("one", "other") * 2])

    answers = asyncio.run(ask())
    assert [answer.status_code for answer in answers] == [200] * 4
    assert answers[1].json()["digest"] == answers[3].json()["digest"] == now


def test_a_caller_gets_504_at_the_deadline_and_the_reload_goes_on(
    folder: Path, app: FastAPI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    held, now = Held(monkeypatch), put(folder, "one", 2)

    async def scenario() -> httpx.Response:
        async with in_process(app, headers=ADMIN) as client:
            soon = {"x-timeout-ms": "20"}
            late = [await client.post("/models/one/reload", headers=soon) for _ in range(2)]
            for answer in late:
                detail = problem(answer, 504, "deadline-passed")["detail"]
                assert detail == "deadline: 20 ms passed before the answer could be made"
            assert caplog.messages.count("reload: begun (key admin)") == 1
            assert caplog.messages.count("reload: one is under way, another one waits for it (key admin)") == 1
            held.go_on.set()
            return await client.post("/models/one/reload")

    assert asyncio.run(scenario()).json()["digest"] == now
    assert counted(app, "vaeserve_reloads") == [3, 0]


def test_a_refusal_that_nobody_waits_for_any_more_is_told_by_the_log_alone(
    folder: Path, app: FastAPI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held(monkeypatch)
    (folder / "one" / "encoder.onnx").write_bytes(b"no graph")

    async def scenario() -> httpx.Response:
        async with in_process(app, headers=ADMIN) as client:
            late = await client.post("/models/one/reload", headers={"x-timeout-ms": "20"})
            held.go_on.set()
            await client.post("/models/one/reload")
            gc.collect()
            return late

    problem(asyncio.run(scenario()), 504, "deadline-passed")
    assert counted(app, "vaeserve_reloads") == [0, 2]
    assert [record.name for record in caplog.records if record.levelno >= logging.ERROR] == ["vaeserve"] * 2


def test_a_deadline_that_is_none_is_422_and_nothing_is_loaded(app: FastAPI) -> None:
    async def ask() -> httpx.Response:
        async with in_process(app, headers=ADMIN | {"x-timeout-ms": "soon"}) as client:
            return await client.post("/models/one/reload")

    assert problem(asyncio.run(ask()), 422, "invalid")["errors"][0]["where"] == "X-Timeout-Ms"
    assert counted(app, "vaeserve_reloads") == [0, 0]


def test_a_load_that_does_not_end_is_given_up_and_the_next_one_is_not_kept_from_it(
    folder: Path, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, now = label(app, "one"), put(folder, "one", 2)
    with monkeypatch.context() as patched:
        held = Held(patched)
        patched.setattr("service.reload.LOAD_S", 0.05)
        detail = problem(reload(app), 409, "reload-refused")["detail"]
    assert detail == f"reload: process {os.getpid()} has not loaded it within 0.05 s; what was loaded serves on"
    assert label(app, "one") == before
    assert reload(app).json()["digest"] == now
    held.go_on.set()


def test_what_has_begun_is_finished_on_the_version_that_it_began_with(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine of the old version holds still while the new one is loaded."""
    monkeypatch.setattr(lane, "loop_budget_us", lambda _cores: -1.0)  # a run on the loop would hold that still too
    app = serving(folder)
    before = label(app, "one")
    decoder = app.state.deployment.models.default.decoder
    run, began, go_on = decoder.run, threading.Event(), threading.Event()

    def held(*rows: np.ndarray) -> Any:
        began.set()
        assert go_on.wait(WITHIN_S)
        return run(*rows)

    decoder.run = held
    now = put(folder, "one", 2)

    async def scenario() -> tuple[str, str]:
        async with in_process(app, headers=ADMIN) as client:
            first = asyncio.create_task(client.get("/sample?seed=1"))
            assert await asyncio.to_thread(began.wait, WITHIN_S)
            assert (await client.post("/models/one/reload")).status_code == 200
            assert not first.done()
            go_on.set()
            return (await first).headers["x-model"], (await client.get("/sample?seed=1")).headers["x-model"]

    assert asyncio.run(scenario()) == (before, f"one@{now}")


def test_a_replaced_version_leaves_no_memory_behind(folder: Path, app: FastAPI) -> None:
    put(folder, "one", 2)
    gc.collect()
    gc.freeze()
    try:
        gone = weakref.ref(app.state.deployment.models.default.engine)
        assert label(app, "one")
        assert reload(app).status_code == 200
        gc.collect()
        assert gone() is None
    finally:
        gc.unfreeze()


def test_all_models_in_their_new_version_run_on_the_lane_of_the_old_ones(app: FastAPI) -> None:
    """A run that began before and does not end is noticed, and its core is not lent twice."""
    deployment = app.state.deployment
    assert reloaded(deployment, None).lane is deployment.lane
