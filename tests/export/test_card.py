"""A run's card and its pictures, as files of a bundle."""

from pathlib import Path

import pytest

from export.card import files
from export.frozen import CannotImport

PNG = b"\x89PNG\r\n\x1a\n and pixels"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose card shows one picture, and that has another."""
    (tmp_path / "pictures").mkdir()
    for name in ("samples", "old"):
        (tmp_path / "pictures" / f"{name}.png").write_bytes(PNG)
    (tmp_path / "card.md").write_text(
        "# Mine\n\n![Samples](pictures/samples.png)\n\nSee [a page](https://a.example/b).\n"
    )
    return tmp_path


def refusal(run: Path) -> str:
    with pytest.raises(CannotImport) as refused:
        files(run)
    return str(refused.value)


def test_a_card_travels_with_the_pictures_that_it_shows_and_with_no_others(run: Path) -> None:
    found = files(run)
    assert found == {"card.md": (run / "card.md").read_bytes(), "pictures/samples.png": PNG}


def test_a_run_that_was_not_evaluated_has_no_card(run: Path) -> None:
    (run / "card.md").unlink()
    assert files(run) == {}


def test_a_picture_that_is_gone_is_named(run: Path) -> None:
    (run / "pictures" / "samples.png").unlink()
    expected = "got No such file or directory, expected a file that the card shows"
    assert refusal(run) == f"{run / 'pictures/samples.png'}: {expected}"


@pytest.mark.parametrize(
    "link", ["../secret.png", "/etc/passwd", "pictures/../../x.png", "notes.md", "file:///etc/passwd", "pictures/a.svg"]
)
def test_a_link_that_would_not_work_inside_the_bundle_is_named(run: Path, link: str) -> None:
    (run / "card.md").write_text(f"![x]({link})")
    assert refusal(run) == f"{run / 'card.md'}: links {link}, expected pictures/NAME.png or an address"


@pytest.mark.parametrize("name", ["card.md", "pictures/samples.png"])
def test_a_link_out_of_the_run_is_not_followed(run: Path, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    private = tmp_path_factory.mktemp("home") / "private"
    private.write_bytes((run / name).read_bytes())
    (run / name).unlink()
    (run / name).symlink_to(private)
    assert refusal(run) == f"{run / name}: got a link that leads out of the run, expected a file inside it"


def test_what_is_no_png_is_refused(run: Path) -> None:
    (run / "pictures" / "samples.png").write_bytes(b"<svg>")
    assert refusal(run) == f"{run / 'pictures/samples.png'}: got something else, expected a PNG"


def test_a_card_that_is_no_text_is_refused(run: Path) -> None:
    (run / "card.md").write_bytes(b"\xff\xfe")
    assert refusal(run) == f"{run / 'card.md'}: got bytes that are not UTF-8, expected Markdown"


@pytest.mark.parametrize(("name", "most"), [("card.md", 2**18), ("pictures/samples.png", 2**22)])
def test_a_file_of_any_size_is_not_copied(run: Path, name: str, most: int) -> None:
    with (run / name).open("ab") as file:
        file.truncate(most + 1)
    assert refusal(run) == f"{run / name}: got more than {most} bytes, expected at most that"


def test_pictures_without_number_are_not_copied(run: Path) -> None:
    (run / "card.md").write_text(" ".join(f"![x](pictures/{number}.png)" for number in range(33)))
    assert refusal(run) == f"{run / 'card.md'}: got 33 pictures, expected at most 32"
