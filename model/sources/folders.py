"""Folders and zips of pictures: which files are pictures, which part each belongs to, and what its class is."""

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO

from model.errors import BadData
from model.fitting import SUFFIXES, PictureFile, PictureFiles
from model.parts import PART_NAMES

# A picture in a zip is unpacked in memory, and a zip's header alone says how large that gets.
MAX_FILE_BYTES = 2**29
_NAMED = 3

Openers = Mapping[PurePosixPath, Callable[[], IO[bytes]]]


@dataclass(frozen=True)
class _Place:
    """Where a picture lies: its whole path in the source, and the path inside its part."""

    path: PurePosixPath
    below: PurePosixPath


def in_folder(folder: Path) -> PictureFiles:
    """Every picture in a folder and below it, by part; a link to nowhere is one, that is broken.

    Raises:  OSError for a folder that may not be listed; BadData for pictures beside several parts, in none of them
    """
    return _parts(
        str(folder),
        {
            PurePosixPath(file.relative_to(folder).as_posix()): partial(_opened, file)
            for file in _files(folder)
            if file.suffix.lower() in SUFFIXES
        },
    )


def in_zip(archive: zipfile.ZipFile) -> PictureFiles:
    """Every picture in an open zip, by part; nothing is extracted.

    Raises:  BadData for pictures beside several parts, in none of them
    """
    return _parts(
        str(archive.filename),
        {
            PurePosixPath(member.filename): partial(_unpacked, archive, member)
            for member in archive.infolist()
            if PurePosixPath(member.filename).suffix.lower() in SUFFIXES and not member.is_dir()
        },
    )


def _files(folder: Path, *, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """What lies in a folder and below it, also where links lead, but for those that lead back up."""
    real = folder.resolve()
    if real in above:
        return
    for path in folder.iterdir():
        if _is_hidden(PurePosixPath(path.name)):
            continue
        if path.is_dir():
            yield from _files(path, above=above | {real})
        elif path.is_file() or not path.exists():  # but for pipes and sockets, which never end
            yield path


def _opened(file: Path) -> IO[bytes]:
    return file.open("rb")


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    if member.file_size > MAX_FILE_BYTES:
        raise BadData(f"got {member.file_size} bytes when unpacked, expected at most {MAX_FILE_BYTES}")
    return BytesIO(archive.read(member))  # in memory, as Pillow jumps about and a zip unpacks forward only


def _parts(source: str, openers: Openers) -> PictureFiles:
    paths = sorted(path for path in openers if not _is_hidden(path))
    parts = _sorted_into_parts(source, _below_shared_folders(paths))
    labelled = {name for name, part in parts.items() if _has_classes(part)}
    classes = sorted({place.below.parts[0] for name in labelled for place in parts[name]})
    numbers = {name: number for number, name in enumerate(classes)} if len(classes) > 1 else {}
    return {
        name: [
            PictureFile(
                name=str(place.path),
                label=numbers.get(place.below.parts[0]) if name in labelled else None,
                open=openers[place.path],
            )
            for place in part
        ]
        for name, part in parts.items()
    }


def _is_hidden(path: PurePosixPath) -> bool:
    """Whether it is what systems leave beside pictures: `.thumbnails`, macOS's `._cat.jpg` and `__MACOSX`."""
    return any(name.startswith((".", "__MACOSX")) for name in path.parts)


def _below_shared_folders(paths: Sequence[PurePosixPath]) -> list[_Place]:
    """Places below the folders that all pictures share, as a zip often holds one folder that holds all."""
    below = list(paths)
    while below and all(len(path.parts) > 1 for path in below) and len({path.parts[0] for path in below}) == 1:
        below = [PurePosixPath(*path.parts[1:]) for path in below]
    return [_Place(path, rest) for path, rest in zip(paths, below, strict=True)]


def _sorted_into_parts(source: str, places: Sequence[_Place]) -> dict[str, list[_Place]]:
    """Parts, if folders of their names are all that there is at the top and one is `train`; else one part, `train`.

    Raises:  BadData if there is more beside several of them: in one part, what is to be tested with would be learnt
    """
    names = {_part_of(place) for place in places} - {None}
    beside = sorted({place.below.parts[0] for place in places if _part_of(place) is None})
    if "train" not in names or (beside and names == {"train"}):
        return {"train": list(places)} if places else {}
    if beside:
        more = f" and {len(beside) - _NAMED} more" if len(beside) > _NAMED else ""
        raise BadData(
            f"{source}: got {', '.join(beside[:_NAMED])}{more} beside folders of parts, expected all pictures in"
            f" folders named {', '.join(PART_NAMES)}, or in others only"
        )
    parts: dict[str, list[_Place]] = {}
    for place in places:
        top, *rest = place.below.parts
        parts.setdefault(PART_NAMES[top.lower()], []).append(_Place(place.path, PurePosixPath(*rest)))
    return parts


def _part_of(place: _Place) -> str | None:
    """The part that the folder at the top is named after."""
    top, *rest = place.below.parts
    return PART_NAMES.get(top.lower()) if rest else None


def _has_classes(part: Sequence[_Place]) -> bool:
    """Whether each picture lies in a folder of its class, right below the part."""
    return all(len(place.below.parts) == 2 for place in part)
