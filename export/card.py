"""The card of a training run and the pictures that it shows, as files of a bundle."""

import re
from pathlib import Path

from export.frozen import CannotImport
from service.manifest import CARD, MAX_CARD_BYTES

# The pictures of vae-train's cards have a few hundred kilobytes each.
_MAX_PICTURE_BYTES = 2**22
_MAX_PICTURES = 32

_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)")
_PICTURE = re.compile(r"pictures/[A-Za-z0-9_-][A-Za-z0-9_.-]*\.png")
_ELSEWHERE = ("https://", "http://", "#")
_PNG = b"\x89PNG\r\n\x1a\n"


def files(run: Path) -> dict[str, bytes]:
    """`card.md` and each picture that it shows, by name in the bundle; nothing where the run has no card.

    Raises:  CannotImport if the card shows something that is no picture of the run, or one is too large
    """
    path = run / CARD
    if not path.exists():
        return {}
    card = _read(run, CARD, most_bytes=MAX_CARD_BYTES)
    try:
        links = _LINK.findall(card.decode())
    except UnicodeDecodeError as error:
        raise CannotImport(f"{path}: got bytes that are not UTF-8, expected Markdown") from error
    shown = sorted({link for link in links if not link.startswith(_ELSEWHERE)})
    if len(shown) > _MAX_PICTURES:
        raise CannotImport(f"{path}: got {len(shown)} pictures, expected at most {_MAX_PICTURES}")
    return {CARD: card} | {link: _picture(run, link) for link in shown}


def _picture(run: Path, link: str) -> bytes:
    if _PICTURE.fullmatch(link) is None:
        raise CannotImport(f"{run / CARD}: links {link}, expected pictures/NAME.png or an address")
    content = _read(run, link, most_bytes=_MAX_PICTURE_BYTES)
    if not content.startswith(_PNG):
        raise CannotImport(f"{run / link}: got something else, expected a PNG")
    return content


def _read(run: Path, name: str, *, most_bytes: int) -> bytes:
    """A file of a run, and of nowhere else: whoever made the run may have put a link there to what is private here."""
    path = run / name
    try:
        if not path.resolve(strict=True).is_relative_to(run.resolve()):
            raise CannotImport(f"{path}: got a link that leads out of the run, expected a file inside it")
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise CannotImport(f"{path}: got {error.strerror or error}, expected a file that the card shows") from error
    if len(content) > most_bytes:
        raise CannotImport(f"{path}: got more than {most_bytes} bytes, expected at most that")
    return content
