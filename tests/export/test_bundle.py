"""A bundle on disk: whole under its own name, or not there at all."""

import os
import re
from pathlib import Path

import pytest

from export import bundle
from export.bundle import CannotWrite, require_name, require_new, staged, write
from service.bundle import read
from tests.service.linear import linear, write_linear


def test_a_staged_file_or_folder_gets_its_name_last(tmp_path: Path) -> None:
    with staged(tmp_path / "deep" / "mine") as place:
        assert place.name == "mine"
        place.write_text("whole")
        assert not (tmp_path / "deep" / "mine").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["mine"]
    assert (tmp_path / "deep" / "mine").read_text() == "whole"


def test_a_disk_holds_every_byte_before_it_knows_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = set()

    def noted(descriptor: int) -> None:
        flushed.add(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        assert not (tmp_path / "mine").exists()

    monkeypatch.setattr(os, "fsync", noted)
    with staged(tmp_path / "mine") as place:
        (place / "pictures").mkdir(parents=True)
        for name in ("a", "pictures/b"):
            (place / name).write_text("whole")
    assert flushed == {"a", "b"}


def test_what_comes_into_the_way_meanwhile_stays(tmp_path: Path) -> None:
    def late(place: Path) -> None:
        place.write_text("mine")
        (tmp_path / "taken").write_text("theirs")

    with pytest.raises(CannotWrite, match="taken: exists already"), staged(tmp_path / "taken") as place:
        late(place)
    assert (tmp_path / "taken").read_text() == "theirs"


def test_what_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    def half(place: Path) -> None:
        place.mkdir()
        (place / "half").write_text("")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), staged(tmp_path / "mine") as place:
        half(place)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_made_for_what_failed_go_with_it(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()

    def failing(place: Path) -> None:
        place.write_text("half")
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"), staged(tmp_path / "theirs" / "a" / "b" / "mine") as place:
        failing(place)
    assert list(tmp_path.iterdir()) == [tmp_path / "theirs"]
    assert list((tmp_path / "theirs").iterdir()) == []


def test_a_place_where_nothing_can_be_made_is_told_by_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*, prefix: str, dir: Path) -> None:  # noqa: A002
        raise OSError(30, "Read-only file system", str(dir / prefix))

    monkeypatch.setattr(bundle, "TemporaryDirectory", failing)
    told = f"{tmp_path / 'mine'}: got Read-only file system, expected a place that can be written to"
    with pytest.raises(CannotWrite, match=f"^{re.escape(told)}$"), staged(tmp_path / "mine"):
        pass


@pytest.mark.parametrize("kind", ["file", "folder", "link to nothing"])
def test_what_is_in_the_way_stays(tmp_path: Path, kind: str) -> None:
    taken = tmp_path / "taken"
    if kind == "file":
        taken.write_text("mine")
    elif kind == "folder":
        taken.mkdir()
    else:
        taken.symlink_to(tmp_path / "nowhere")
    with pytest.raises(CannotWrite, match="taken: exists already, expected a new place"), staged(taken):
        raise AssertionError("nothing is staged")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_folder_that_may_not_be_written_into_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever runs the tests may be root, who may write anywhere.
    monkeypatch.setattr(os, "access", lambda place, mode: place != tmp_path or mode == os.R_OK)
    told = f"{tmp_path}: got a folder that may not be written into, expected one that may"
    for target in (tmp_path / "mine", tmp_path / "deep" / "mine"):
        with pytest.raises(CannotWrite, match=told):
            require_new(target)


def test_a_bundle_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    manifest = write_linear(tmp_path / "linear", linear())
    assert read(tmp_path / "linear").manifest == manifest


def test_pictures_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    manifest = write_linear(tmp_path / "linear", linear())
    write(tmp_path / "other", {"pictures/a.png": b"png"}, manifest)
    assert (tmp_path / "other" / "pictures" / "a.png").read_bytes() == b"png"


@pytest.mark.parametrize("name", ["", "a b", ".hidden", "-x", "a/b", "ä", "a" * 65])
def test_a_name_that_no_address_can_carry_is_refused(name: str) -> None:
    with pytest.raises(CannotWrite) as refused:
        require_name(name)
    expected = "at most 64 letters, digits, '.', '_' and '-', the first of them a letter or a digit"
    assert str(refused.value) == f"name: got {name!r}, expected {expected}"


@pytest.mark.parametrize("name", ["a", "sd-vae_1.5", "9", "A" * 64])
def test_a_name_of_letters_digits_and_a_few_signs_is_fine(name: str) -> None:
    require_name(name)
