"""Who may come in: keys over HTTP, what they open, what they cost, and that nothing tells them."""

import asyncio
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.access.keys import Scope
from service.app import create_app
from service.settings import Settings
from tests.service.clock import Clock
from tests.service.keyring import bearer, lines, tokens, write
from tests.service.linear import Bundles, Linear
from tests.service.test_errors import problem
from tests.service.wire import form, pixels
from tests.serving import Server, in_process, serving, stopped
from tests.waiting import until

HELD = tokens("reader", "admin", "both", "slow")
READER, ADMIN, BOTH, SLOW = (bearer(HELD[name]) for name in ("reader", "admin", "both", "slow"))
PINNED = "private, max-age=31536000, immutable"
SLOW_ROWS_PER_S = 0.01


def keys_file(path: Path) -> Path:
    def line(name: str, *scopes: Scope, rows_per_s: float | None = None) -> str:
        return lines({name: HELD[name]}, scopes=scopes, rows_per_s=rows_per_s)[0]

    return write(
        path,
        [
            line("reader", Scope.READ),
            line("admin", Scope.ADMIN),
            line("both", Scope.READ, Scope.ADMIN),
            line("slow", Scope.READ, rows_per_s=SLOW_ROWS_PER_S),
        ],
    )


@dataclass(frozen=True)
class Locked:
    server: Server
    keys: Path
    stdout: Path


@pytest.fixture(scope="module")
def locked(bundles: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    """A process with keys, which logs all that it can."""
    folder = tmp_path_factory.mktemp("locked")
    keys, stdout = keys_file(folder / "keys.toml"), folder / "stdout"
    flags = ["--api-keys-file", str(keys), "--access-log", "--log-level", "debug"]
    with stdout.open("w") as out, serving([*bundles.arguments, *flags], stdout=out) as server:
        yield Locked(server, keys, stdout)


@pytest.fixture(scope="module")
def http(locked: Locked) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=locked.server.url, timeout=30) as client:
        yield client


@pytest.fixture
def guarded(bundles: Bundles, tmp_path: Path) -> FastAPI:
    """The application in this process, with the same keys."""
    return create_app(Settings(bundles=(bundles.colour,), api_keys_file=keys_file(tmp_path / "keys.toml")), cores=1)


def test_the_first_line_to_try_shows_where_the_key_goes(locked: Locked) -> None:
    said = "".join(locked.server.said)
    assert '/sample?n=16&seed=7&scale=4\' -H "Authorization: Bearer $KEY" -o sample.png' in said


# 401 and 403


def test_a_key_in_a_trailer_opens_nothing(locked: Locked) -> None:
    url = httpx.URL(locked.server.url)
    head = "POST /sample HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"
    with socket.create_connection((url.host, url.port or 0), timeout=20) as connection:
        connection.sendall(f"{head}2\r\n{{}}\r\n0\r\nAuthorization: {READER['authorization']}\r\n\r\n".encode())
        assert connection.recv(2**16).startswith(b"HTTP/1.1 401 ")


ASKED = [
    ("GET", "/sample?seed=1"),
    ("HEAD", "/sample?seed=1"),
    ("POST", "/encode"),
    ("OPTIONS", "/encode"),
    ("GET", "/models"),
    ("GET", "/models/colour"),
    ("POST", "/models/colour/reload"),
    ("GET", "/metrics"),
    ("GET", "/nothing"),
    ("GET", "/docs.html"),
    ("GET", "/healthy"),
    ("GET", "//health/live"),
]


@pytest.mark.parametrize(("method", "path"), ASKED)
def test_without_a_key_everything_is_401(http: httpx.Client, method: str, path: str) -> None:
    answer = http.request(method, http.base_url.copy_with(raw_path=path.encode()))
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="vaeserve"'
    assert answer.headers["cache-control"] == "no-store"
    if method != "HEAD":
        assert problem(answer, 401, "no-key")["detail"] == "key: got none, expected one as Authorization: Bearer KEY"


@pytest.mark.parametrize("path", ["/", "/docs", "/docs/start.js", "/docs/assets/swagger-ui.css", "/openapi.json"])
def test_pages_are_open(http: httpx.Client, path: str) -> None:
    assert http.get(path, follow_redirects=True).status_code == 200


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer no key"}])
def test_probes_are_open_whatever_key_they_show(http: httpx.Client, path: str, headers: dict[str, str]) -> None:
    assert http.get(path, headers=headers).status_code == 200


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
def test_a_key_opens_what_it_is_for(http: httpx.Client, scheme: str) -> None:
    headers = {"authorization": f"{scheme} {HELD['reader']}"}
    assert http.get("/models", headers=headers).status_code == 200
    assert http.get("/sample?seed=1", headers=headers).status_code == 200


UNKNOWN = ("got one that is not known here", 'Bearer realm="vaeserve", error="invalid_token"')
SCHEME = ("got an Authorization of another scheme", 'Bearer realm="vaeserve"')


@pytest.mark.parametrize(
    ("sent", "got", "challenge"),
    [
        ([b"Bearer vae_unknown"], *UNKNOWN),
        ([b"Bearer " + HELD["reader"][:-1].encode()], *UNKNOWN),
        ([b"Bearer"], *UNKNOWN),
        ([b"Bearer \xff\xfe"], *UNKNOWN),
        ([b"Basic " + HELD["reader"].encode()], *SCHEME),
        ([HELD["reader"].encode()], *SCHEME),
        ([b""], *SCHEME),
        ([b"Bearer " + HELD["reader"].encode()] * 2, "got 2 of them", 'Bearer realm="vaeserve"'),
    ],
)
def test_what_is_no_key_is_401_and_is_not_repeated(
    http: httpx.Client, sent: list[bytes], got: str, challenge: str
) -> None:
    answer = http.get("/models", headers=[(b"authorization", value) for value in sent])
    assert problem(answer, 401, "no-key")["detail"] == f"key: {got}, expected one as Authorization: Bearer KEY"
    assert answer.headers["www-authenticate"] == challenge


@pytest.mark.parametrize("headers", [{"x-api-key": HELD["reader"]}, {"cookie": f"key={HELD['reader']}"}])
def test_a_key_is_taken_from_nowhere_else(http: httpx.Client, headers: dict[str, str]) -> None:
    problem(http.get("/models", headers=headers), 401, "no-key")


def test_a_key_for_something_else_is_403_and_told_what_it_lacks(http: httpx.Client) -> None:
    answer = http.get("/sample?seed=1", headers=ADMIN)
    assert (
        problem(answer, 403, "key-lacks-scope")["detail"] == "key: got admin, which is for admin, expected one for read"
    )
    expected = 'Bearer realm="vaeserve", error="insufficient_scope", scope="read"'
    assert answer.headers["www-authenticate"] == expected


def test_what_changes_the_service_takes_an_admins_key(http: httpx.Client) -> None:
    refused = problem(http.post("/models/colour/reload", headers=READER), 403, "key-lacks-scope")
    assert refused["detail"] == "key: got reader, which is for read, expected one for admin"
    for headers in (ADMIN, BOTH):
        assert http.post("/models/colour/reload", headers=headers).status_code == 200


def test_a_body_is_not_read_before_the_key_is_known(locked: Locked) -> None:
    url = httpx.URL(locked.server.url)
    with socket.create_connection((url.host, url.port or 80), timeout=20) as connection:
        connection.sendall(b"POST /encode HTTP/1.1\r\nHost: here\r\nContent-Length: 1000000000\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_your_request_id_comes_back_with_a_refusal(http: httpx.Client) -> None:
    answer = http.get("/models", headers={"x-request-id": "mine-17"})
    assert answer.headers.get_list("x-request-id") == ["mine-17"]


@pytest.mark.parametrize(("metrics_open", "status"), [(False, 401), (True, 200)])
def test_metrics_are_open_if_the_settings_say_so(
    bundles: Bundles, tmp_path: Path, metrics_open: bool, status: int
) -> None:
    settings = Settings(
        bundles=(bundles.colour,), api_keys_file=keys_file(tmp_path / "keys.toml"), open_metrics=metrics_open
    )

    async def scenario() -> None:
        async with in_process(create_app(settings, cores=1)) as client:
            answer = await client.get("/metrics")
            assert answer.status_code == status
            assert (await client.get("/models")).status_code == 401
            documented = (await client.get("/openapi.json")).json()["paths"]["/metrics"]["get"]
            assert ("security" in documented, "401" in documented["responses"]) == (not metrics_open, not metrics_open)

    asyncio.run(scenario())


# What keys change for caches and in OpenAPI


@pytest.mark.parametrize("path", ["/sample?seed=7", "/interpolate?seeds=3,14", "/traverse?seed=1&dims=0"])
def test_what_a_key_opened_is_kept_by_private_caches_alone(http: httpx.Client, path: str) -> None:
    answer = http.get(path, headers=READER)
    assert answer.headers["cache-control"] == "private, no-cache"
    pinned = http.get(f"{path}&model={answer.headers['x-model']}", headers=READER)
    assert pinned.headers["cache-control"] == PINNED
    held = READER | {"if-none-match": answer.headers["etag"]}
    again = http.get(path, headers=held)
    assert (again.status_code, again.headers["cache-control"]) == (304, "private, no-cache")
    assert http.get(path, headers={"if-none-match": answer.headers["etag"]}).status_code == 401


def test_openapi_says_what_takes_a_key(http: httpx.Client, client: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert {name: scheme["scheme"] for name, scheme in document["components"]["securitySchemes"].items()} == {
        "key": "bearer"
    }
    operations = [(path, operation) for path, item in document["paths"].items() for operation in item.values()]
    assert len(operations) > 10
    for path, operation in operations:
        if path.startswith("/health/"):
            assert "security" not in operation
        else:
            assert operation["security"] == [{"key": ["admin" if path.endswith("/reload") else "read"]}], path
            for status in ("401", "403", "429"):
                assert "application/problem+json" in operation["responses"][status]["content"], path
    without = client.get("/openapi.json").json()
    assert "securitySchemes" not in without["components"]
    assert not any("security" in operation for item in without["paths"].values() for operation in item.values())


# Rates


def test_a_rate_that_is_used_up_is_429_and_told_apart_from_a_full_queue(clock: Clock, guarded: FastAPI) -> None:
    async def scenario() -> None:
        async with in_process(guarded) as client:
            assert (await client.get("/sample?n=3", headers=SLOW)).status_code == 200
            for path in ("/sample?n=1", "/sample?n=4096", "/models"):
                answer = await client.get(path, headers=SLOW)
                # A hundredth of a row was there; the rest of three takes as many hundred seconds.
                assert problem(answer, 429, "rate-used-up")["detail"] == (
                    "rate: this key's engine rows are used up; try again in 299 s"
                )
                assert answer.headers["retry-after"] == "299"
            assert (await client.get("/sample?n=1", headers=READER)).status_code == 200
            assert (await client.get("/health/live", headers=SLOW)).status_code == 200
            clock.now += 299.1
            assert (await client.get("/sample?n=1", headers=SLOW)).status_code == 200
            assert (await client.get("/sample?n=1", headers=SLOW)).status_code == 429

    asyncio.run(scenario())


COSTS: list[tuple[str, str, int]] = [
    ("POST", "/encode", 2),
    ("POST", "/score", 4),
    ("GET", "/sample?n=7", 7),
    ("POST", "/decode", 1),
    ("POST", "/reconstruct", 4),
    ("GET", "/interpolate?seeds=1,2&steps=5", 5),
    ("GET", "/traverse?seed=1&dims=0,1&steps=3", 6),
]


@pytest.mark.parametrize(("method", "path", "rows"), COSTS)
def test_every_verb_costs_a_key_its_engine_rows(
    clock: Clock, kinds_folder: Path, full: Linear, tmp_path: Path, method: str, path: str, rows: int
) -> None:
    settings = Settings(bundles=(kinds_folder / "full",), api_keys_file=keys_file(tmp_path / "keys.toml"))
    sent: dict[str, Any] = {}
    if method == "POST":
        sent = {"json": {"z": [0] * 10}} if path == "/decode" else {"files": form(pixels(2, full.shape))}

    async def scenario() -> None:
        async with in_process(create_app(settings, cores=1)) as client:
            assert (await client.request(method, path, headers=SLOW, **sent)).status_code == 200
            refused = await client.request(method, path, headers=SLOW, **sent)
            problem(refused, 429, "rate-used-up")
            assert refused.headers["retry-after"] == str(round((rows - SLOW_ROWS_PER_S) / SLOW_ROWS_PER_S))

    asyncio.run(scenario())


def test_what_runs_nothing_costs_nothing(clock: Clock, guarded: FastAPI) -> None:
    async def scenario() -> None:
        async with in_process(guarded) as client:
            tag = (await client.get("/sample?seed=1", headers=READER)).headers["etag"]
            lane = guarded.state.deployment.lane
            with lane.admit(guarded.state.deployment.settings.max_queue_rows):
                problem(await client.get("/sample?seed=1", headers=SLOW), 429, "queue-full")
            held = SLOW | {"if-none-match": tag}
            assert (await client.get("/sample?seed=1", headers=held)).status_code == 304
            assert (await client.get("/sample?n=0", headers=SLOW)).status_code == 422
            assert (await client.get("/models", headers=SLOW)).status_code == 200
            assert (await client.get("/sample?seed=1", headers=SLOW)).status_code == 200
            problem(await client.get("/sample?seed=1", headers=SLOW), 429, "rate-used-up")

    asyncio.run(scenario())


@pytest.mark.parametrize("count", [1, 2])
def test_workers_divide_a_keys_rate(bundles: Bundles, tmp_path: Path, count: int) -> None:
    """A worker has so little of it that one row is a debt of many minutes; how many tells what its part is."""
    keys = write(tmp_path / "keys.toml", lines({"slow": HELD["slow"]}, rows_per_s=0.001))
    with serving([str(bundles.colour), "--workers", str(count), "--api-keys-file", str(keys)]) as server:
        answers = [httpx.get(f"{server.url}/sample?seed=1", headers=SLOW, timeout=30) for _ in range(count + 1)]
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(200) <= count
    refused = answers[statuses.index(429)]
    problem(refused, 429, "rate-used-up")
    assert 0.9 * 1_000 * count < int(refused.headers["retry-after"]) <= 1_000 * count


# Rotation and the start, in a real process


def test_a_changed_file_counts_without_a_restart(locked: Locked, http: httpx.Client) -> None:
    before, added = locked.keys.read_text().splitlines(), tokens("added")

    def status() -> int:
        return http.get("/models", headers=bearer(added["added"])).status_code

    assert status() == 401
    write(locked.keys, [*before, *lines(added)])
    until(lambda: status() == 200)
    write(locked.keys, ["reader = {"])
    until(lambda: status() == 200 and any("read before stay" in line for line in locked.server.said))
    write(locked.keys, before)
    until(lambda: status() == 401)
    assert http.get("/models", headers=READER).status_code == 200


def test_workers_without_a_request_take_new_keys_too(bundles: Bundles, tmp_path: Path) -> None:
    """A key that is taken away opens nothing any more, whichever worker it comes to first."""
    keys = keys_file(tmp_path / "keys.toml")
    with serving([str(bundles.colour), "--workers", "2", "--api-keys-file", str(keys)]) as server:
        write(keys, lines({"admin": HELD["admin"]}))
        until(lambda: len({line for line in server.said if "keys.toml read again by process" in line}) == 2)
        for _ in range(8):
            assert httpx.get(f"{server.url}/models", headers=READER, timeout=30).status_code == 401


def test_a_file_of_keys_that_cannot_be_used_refuses_the_start_of_one_process_and_of_several(tmp_path: Path) -> None:
    path = write(tmp_path / "keys.toml", ['a = { sha256 = "vae_secret", scopes = ["read"] }'])
    expected = "a: sha256: got 10 characters, expected the 64 hex digits of a key's SHA-256, in lower case"
    assert stopped("--api-keys-file", str(path), "--workers", "2") == f"{path}: {expected}"
    missing = tmp_path / "none"
    said = stopped(environment={"VAE_API_KEYS_FILE": str(missing)})
    assert said == f"{missing}: No such file or directory, expected a file of keys"


# Secrets


def test_no_answer_and_no_line_of_the_log_tells_a_key(locked: Locked, http: httpx.Client) -> None:
    known, unknown = HELD["reader"], tokens("unknown")["unknown"]
    sent: list[dict[str, str]] = []
    for token in (known, unknown, HELD["admin"], HELD["slow"]):
        sent += [bearer(token), {"authorization": f"Basic {token}"}, {"authorization": token}, {"x-api-key": token}]
    answers = [
        http.request(method, path, headers=headers) for headers in sent for method, path in [*ASKED, ("GET", "/docs")]
    ]
    answers += [http.get("/sample?seed=x", headers=READER), http.post("/encode", headers=READER, content=b"x")]
    write(locked.keys, [*lines(tokens("other")), f'leaked = {{ sha256 = "{unknown}", scopes = ["read"] }}'])
    until(
        lambda: (
            http.get("/models", headers=READER).is_success
            and any("leaked: sha256: got 47 characters" in line for line in locked.server.said)
        )
    )
    keys_file(locked.keys)
    told = [answer.text + repr(answer.headers) for answer in answers]
    logged = "".join(locked.server.said) + locked.stdout.read_text()
    assert "/sample" in logged
    for name in ("reader", "admin", "slow"):
        assert f"key={name} " in logged
    for token in (known, unknown, HELD["admin"], HELD["slow"]):
        secret = token.removeprefix("vae_")
        assert [text for text in told if secret[:12] in text or secret[-12:] in text] == []
        assert secret[:12] not in logged
        assert secret[-12:] not in logged


def test_a_failure_of_ours_does_not_log_the_key(guarded: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    def broken(_rows: object) -> Any:
        raise RuntimeError("the engine failed")

    async def scenario() -> None:
        async with in_process(guarded) as client:
            guarded.state.deployment.models.default.decoder.run = broken
            answer = await client.get("/sample?seed=1", headers=READER)
            problem(answer, 500, "internal")
            assert HELD["reader"] not in answer.text

    asyncio.run(scenario())
    assert "the engine failed" in caplog.text
    assert HELD["reader"] not in caplog.text


def test_settings_tell_where_keys_are_and_none_of_them(tmp_path: Path) -> None:
    path = keys_file(tmp_path / "keys.toml")
    program = f"from service.settings import Settings; print(repr(Settings(api_keys_file={str(path)!r})))"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert str(path) in told
    assert HELD["reader"] not in told
