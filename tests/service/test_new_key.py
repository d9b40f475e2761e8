"""`python -m service.new_key`: a key, shown once, and the line that admits it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.access.keys import Keys, Scope

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def new_key(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.new_key", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_what_it_prints_is_a_file_that_admits_the_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    made = [new_key("gallery"), new_key("ops", "--scope", "admin", "--scope", "read", "--rows-per-s", "2.5")]
    path.write_text("".join(each.stdout for each in made))
    path.chmod(0o600)
    tokens = []
    for each in made:
        assert each.returncode == 0, each.stderr
        assert len(each.stdout.splitlines()) == 1
        (token,) = re.findall(r"^The key of \w+, which is shown this once: (vae_[\w-]{43})$", each.stderr, re.MULTILINE)
        assert token not in each.stdout
        tokens.append(token)
    assert len(set(tokens)) == 2
    held = Keys(path, workers=1)
    gallery, ops = (held.find(token.encode()) for token in tokens)
    assert gallery is not None
    assert ops is not None
    assert (gallery.name, gallery.scopes, gallery.rows_per_s) == ("gallery", {Scope.READ}, None)
    assert (ops.name, ops.scopes, ops.rows_per_s) == ("ops", {Scope.READ, Scope.ADMIN}, 2.5)


def test_the_lines_of_the_operations_page_make_a_file_of_keys_for_its_owner_alone(tmp_path: Path) -> None:
    written = re.findall(r"^    (.*service\.new_key \w+.*>> keys\.toml.*)$", OPERATIONS.read_text(), re.MULTILINE)
    assert len(written) == 3
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", "-ec", "\n".join(written)], cwd=tmp_path, check=True, timeout=60, env=os.environ | path)
    keys = tmp_path / "keys.toml"
    assert keys.stat().st_mode & 0o777 == 0o600
    assert Keys(keys, workers=1).find(b"") is None
    assert re.findall(r"^(\w+) = .*?(rows_per_s = \d+|) }$", keys.read_text(), re.MULTILINE) == [
        ("gallery", ""),
        ("nightly", "rows_per_s = 200"),
        ("ops", ""),
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["two words"], "new_key: name: got a name of 9 characters, expected up to 64 letters, digits, - and _, not "),
        (["x", "--scope", "write"], "Invalid value for '--scope'"),
        (["x", "--rows-per-s", "inf"], "new_key: x: rows_per_s: got inf, expected engine rows a second, 0.001 or more"),
        (["x", "--rows-per-s", "0"], "Invalid value for '--rows-per-s'"),
    ],
)
def test_what_no_file_could_hold_makes_no_key(arguments: list[str], sentence: str) -> None:
    made = new_key(*arguments)
    assert (made.returncode, made.stdout) == (2, "")
    assert sentence in made.stderr
    assert "shown this once" not in made.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_key_whose_line_is_not_written_is_not_shown() -> None:
    command = [sys.executable, "-m", "service.new_key", "gallery"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == "new_key: No space left on device, expected a file that takes the line\n"
