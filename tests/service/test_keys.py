"""The file of keys: what it may hold, whom it lets in, and what happens when it changes."""

import asyncio
import errno
import hashlib
import hmac
import logging
import os
from pathlib import Path

import pytest

from service.access import keys
from service.access.keys import BadKeys, Keys, Scope
from tests.service.keyring import lines, tokens, write
from tests.waiting import until

HELD = tokens("first", "second", "third")
HASH = hashlib.sha256(b"a key").hexdigest()
OTHER = hashlib.sha256(b"another key").hexdigest()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "keys.toml", lines(HELD))


def found(held: Keys, token: str) -> str | None:
    key = held.find(token.encode())
    return key and key.name


def names(held: Keys) -> list[str]:
    return [name for name, token in HELD.items() if found(held, token) == name]


def test_every_key_of_the_file_is_found_by_its_name(path: Path) -> None:
    assert names(Keys(path, workers=1)) == ["first", "second", "third"]


@pytest.mark.parametrize(
    "token",
    ["", "vae_", HELD["first"][:-1], HELD["first"] + "x", HELD["first"].upper(), "é"],
    ids=["nothing", "the beginning", "too short", "too long", "upper case", "no ASCII"],
)
def test_what_is_not_a_key_is_none(path: Path, token: str) -> None:
    assert found(Keys(path, workers=1), token) is None


def test_the_hash_that_the_file_holds_is_no_key(path: Path) -> None:
    digest = hashlib.sha256(HELD["first"].encode())
    assert digest.hexdigest() in path.read_text()
    assert Keys(path, workers=1).find(digest.hexdigest().encode()) is None
    assert Keys(path, workers=1).find(digest.digest()) is None


@pytest.mark.parametrize("token", [*HELD.values(), "vae_of_nobody", ""], ids=[*HELD, "of nobody", "nothing"])
def test_a_key_is_compared_with_all_keys_whichever_it_is(
    path: Path, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, compared = Keys(path, workers=1), []

    def noted(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(keys, "compare_digest", noted)
    held.find(token.encode())
    assert compared == [(32, 32)] * 3


def test_a_key_has_the_scopes_and_the_rate_of_its_line(tmp_path: Path) -> None:
    text = [
        f'reader = {{ sha256 = "{HASH}", scopes = ["read"], rows_per_s = 2.5 }}',
        f'both = {{ sha256 = "{OTHER}", scopes = ["read", "admin"] }}',
    ]
    held = Keys(write(tmp_path / "keys.toml", text), workers=1)
    reader, both = held.find(b"a key"), held.find(b"another key")
    assert reader is not None
    assert both is not None
    assert (reader.name, reader.scopes, reader.rows_per_s) == ("reader", {Scope.READ}, 2.5)
    assert (both.name, both.scopes, both.rows_per_s, both.bucket) == ("both", {Scope.READ, Scope.ADMIN}, None, None)


GOOD = f'sha256 = "{HASH}", scopes = ["read"]'
A_NAME = "expected up to 64 letters, digits, - and _, not vae_ first"
BAD = {
    "": "got no key, expected at least one",
    "# nobody": "got no key, expected at least one",
    "a = {": "not readable as TOML: Invalid initial character for a key part (at line 1, column 6)",
    "a = vae_secret": "not readable as TOML: Invalid value (at line 1, column 5)",
    "vae_secret": "not readable as TOML: Expected '=' after a key in a key/value pair (at line 1, column 11)",
    f"a = {{ {GOOD} }}\na = {{ {GOOD} }}": "not readable as TOML: Cannot overwrite a value (at line 2, column 103)",
    f"a = {{ {GOOD} }}\nb = {{ {GOOD} }}": "got one sha256 for a and b, expected a key for each",
    f'"a b" = {{ {GOOD} }}': f"got a name of 3 characters, {A_NAME}",
    f"{'a' * 65} = {{ {GOOD} }}": f"got a name of 65 characters, {A_NAME}",
    f"vae_secret = {{ {GOOD} }}": f"got a name of 10 characters, {A_NAME}",
    'a = "vae_secret"': "a: got a text, expected a table with sha256, scopes, rows_per_s",
    "a = 1": "a: got a number, expected a table with sha256, scopes, rows_per_s",
    f'a = {{ {GOOD}, key = "vae_secret" }}': "a: got a field key, expected none but sha256, scopes, rows_per_s",
    'a = { scopes = ["read"] }': "a: sha256: got none, expected the 64 hex digits of a key's SHA-256, in lower case",
    'a = { sha256 = "vae_secret", scopes = ["read"] }': (
        "a: sha256: got 10 characters, expected the 64 hex digits of a key's SHA-256, in lower case"
    ),
    f'a = {{ sha256 = "{HASH.upper()}", scopes = ["read"] }}': (
        "a: sha256: got 64 characters, expected the 64 hex digits of a key's SHA-256, in lower case"
    ),
    'a = { sha256 = 7, scopes = ["read"] }': (
        "a: sha256: got a number, expected the 64 hex digits of a key's SHA-256, in lower case"
    ),
    f'a = {{ sha256 = "{hashlib.sha256().hexdigest()}", scopes = ["read"] }}': (
        "a: sha256: got that of an empty text, expected a key's"
    ),
    f'a = {{ sha256 = "{HASH}" }}': "a: scopes: got none, expected a list of read and admin",
    f'a = {{ sha256 = "{HASH}", scopes = [] }}': "a: scopes: got none, expected a list of read and admin",
    f'a = {{ sha256 = "{HASH}", scopes = "read" }}': "a: scopes: got a text, expected a list of read and admin",
    f'a = {{ sha256 = "{HASH}", scopes = ["read", "write"] }}': "a: scopes: got 'write', expected read or admin",
    f'a = {{ sha256 = "{HASH}", scopes = [[]] }}': "a: scopes: got '[]', expected read or admin",
    f"a = {{ {GOOD}, rows_per_s = 0 }}": "a: rows_per_s: got 0, expected engine rows a second, 0.001 or more",
    f"a = {{ {GOOD}, rows_per_s = -1.5 }}": "a: rows_per_s: got -1.5, expected engine rows a second, 0.001 or more",
    f"a = {{ {GOOD}, rows_per_s = 5e-324 }}": (
        "a: rows_per_s: got 5e-324, expected engine rows a second, 0.001 or more"
    ),
    f"a = {{ {GOOD}, rows_per_s = nan }}": "a: rows_per_s: got nan, expected engine rows a second, 0.001 or more",
    f"a = {{ {GOOD}, rows_per_s = inf }}": "a: rows_per_s: got inf, expected engine rows a second, 0.001 or more",
    f"a = {{ {GOOD}, rows_per_s = {10**400} }}": (
        f"a: rows_per_s: got {str(10**400)[:32]}, expected engine rows a second, 0.001 or more"
    ),
    f"a = {{ {GOOD}, rows_per_s = true }}": "a: rows_per_s: got True, expected engine rows a second, 0.001 or more",
    f'a = {{ {GOOD}, rows_per_s = "9" }}': "a: rows_per_s: got 9, expected engine rows a second, 0.001 or more",
}


@pytest.mark.parametrize("text", BAD)
def test_a_file_that_is_wrong_is_refused_with_a_sentence(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "keys.toml", [text])
    with pytest.raises(BadKeys) as refused:
        Keys(path, workers=1)
    place, _, sentence = str(refused.value).partition(": ")
    assert (place, sentence) == (str(path), BAD[text])
    assert "secret" not in sentence


def test_a_file_that_cannot_be_read_is_refused_with_a_sentence(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    with pytest.raises(BadKeys, match=r"none\.toml: No such file or directory, expected a file of keys"):
        Keys(missing, workers=1)
    with pytest.raises(BadKeys, match=r": Is a directory, expected a file of keys"):
        Keys(tmp_path, workers=1)
    missing.write_bytes(b"\xff")
    with pytest.raises(BadKeys, match=r"none\.toml: not readable as TOML: not UTF-8"):
        Keys(missing, workers=1)


def test_a_file_of_thousands_of_brackets_is_refused_with_a_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "keys.toml", ["a = " + 10_000 * "[" + 10_000 * "]"])
    with pytest.raises(BadKeys, match=r"keys\.toml: not readable as TOML: "):
        Keys(path, workers=1)


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o602, True)])
def test_a_file_that_others_may_read_or_write_is_warned_of(
    path: Path, mode: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path.chmod(mode)
    Keys(path, workers=1)
    said = f"keys: {path} has mode {mode:o}, every user of this machine may read or write it, expected 600"
    assert caplog.messages == ([said] if warned else [])


# Rotation


def test_a_key_that_is_added_is_let_in_and_one_that_is_taken_out_is_not(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    held = Keys(path, workers=1)
    added = tokens("fourth")
    write(path, lines({"second": HELD["second"], **added}))
    held.look()
    assert found(held, added["fourth"]) == "fourth"
    assert names(held) == ["second"]
    assert caplog.messages == [f"keys: {path} read again by process {os.getpid()}: second, fourth"]


def test_a_change_of_the_same_length_within_a_second_is_seen(path: Path) -> None:
    held = Keys(path, workers=1)
    before = path.stat()
    other = tokens("first", "second", "third")
    path.write_text("".join(f"{each}\n" for each in lines(other)), encoding="utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert path.stat().st_size == before.st_size
    held.look()
    assert names(held) == []
    assert found(held, other["first"]) == "first"


@pytest.fixture(params=["broken", "missing", "empty"])
def spoilt(request: pytest.FixtureRequest, path: Path) -> tuple[Keys, str]:
    held = Keys(path, workers=1)
    if request.param == "broken":
        write(path, ['first = { sha256 = "vae_secret", scopes = ["read"] }'])
        said = "first: sha256: got 10 characters, expected the 64 hex digits of a key's SHA-256, in lower case"
    elif request.param == "missing":
        path.unlink()
        said = "No such file or directory, expected a file of keys"
    else:
        write(path, [])
        said = "got no key, expected at least one"
    return held, f"keys: {path}: {said}; the keys that process {os.getpid()} read before stay"


def test_after_a_broken_change_the_old_keys_stay_and_the_log_says_so_once(
    spoilt: tuple[Keys, str], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held, sentence = spoilt
    for _ in range(3):
        held.look()
        assert names(held) == ["first", "second", "third"]
    assert [(record.levelname, record.message) for record in caplog.records] == [("ERROR", sentence)]
    write(path, lines({"third": HELD["third"]}))
    held.look()
    assert names(held) == ["third"]


def test_a_file_that_cannot_be_read_for_a_while_is_read_once_it_can(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As by a process without a file descriptor to spare, in which `stat` works: a key that was revoked must go."""
    held = Keys(path, workers=1)
    write(path, lines({"third": HELD["third"]}))
    with monkeypatch.context() as full:

        def refused(*_: object, **__: object) -> str:
            raise OSError(errno.EMFILE, "Too many open files")

        full.setattr(Path, "read_text", refused)
        for _ in range(3):
            held.look()
            assert names(held) == ["first", "second", "third"]
    stay = f"the keys that process {os.getpid()} read before stay"
    assert caplog.messages == [f"keys: {path}: Too many open files, expected a file of keys; {stay}"]
    held.look()
    assert names(held) == ["third"]


def test_another_mode_is_a_change_as_the_file_may_be_readable_by_then(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    held = Keys(path, workers=1)
    path.chmod(0o400)
    held.look()
    assert names(held) == ["first", "second", "third"]
    assert caplog.messages == [f"keys: {path} read again by process {os.getpid()}: first, second, third"]


def test_a_change_is_seen_without_a_request(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys, "_LOOK_EVERY_S", 0.001)
    caplog.set_level(logging.INFO)
    held = Keys(path, workers=1)

    async def scenario() -> None:
        watching = asyncio.create_task(held.watch())
        for others in ({"third": HELD["third"]}, {"first": HELD["first"]}):
            caplog.clear()
            write(path, lines(others))
            await asyncio.to_thread(until, lambda: bool(caplog.messages))
            assert names(held) == list(others)
        watching.cancel()

    asyncio.run(scenario())


def test_a_key_that_stays_keeps_what_it_has_used_of_its_rate(tmp_path: Path) -> None:
    path = write(tmp_path / "keys.toml", lines(HELD, rows_per_s=5))
    held = Keys(path, workers=1)
    buckets = {name: held.find(token.encode()).bucket for name, token in HELD.items()}  # type: ignore[union-attr]
    kept, changed = {"first": HELD["first"]}, {"second": HELD["second"]}
    write(path, [*lines(kept, rows_per_s=5), *lines(changed, rows_per_s=6)])
    held.look()
    first, second = (held.find(HELD[name].encode()) for name in ("first", "second"))
    assert first is not None
    assert second is not None
    assert first.bucket is buckets["first"]
    assert second.bucket is not buckets["second"]
