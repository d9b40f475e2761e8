"""The named files of a bundle, in a folder or in one zip, read in memory and never from outside of either."""

import os
import re
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ENOENT
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

# What a file of a bundle may be called: no way out of the folder, nothing hidden, nothing that a shell would read.
NAME_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*$"

# Deflate writes a match of 258 bytes in two bits at best.
_DEFLATE_RATIO_MAX = 1032
_ENCRYPTED = 0x1 | 0x40

# All that zipfile raises on a file that lies about itself.
_ZIP_ERRORS = (BadZipFile, EOFError, NotImplementedError, OSError, OverflowError, ValueError, struct.error, zlib.error)


class BadBundle(Exception):
    """A bundle that must not be served. One sentence: the file, what was found, what was expected."""


@dataclass(frozen=True)
class Folder:
    """The files of a folder. It may hold others than a bundle's, which nothing reads."""

    path: Path

    def size_bytes(self, name: str) -> int:
        """The size of a file.

        Raises:  OSError if there is none, BadBundle if it or a folder on the way is a symbolic link, or it is no file
        """
        place = self.path
        mode = size = 0
        for part in name.split("/"):
            place /= part
            found = place.lstat()
            mode, size = found.st_mode, found.st_size
            if stat.S_ISLNK(mode):
                raise BadBundle(f"{place}: is a symbolic link, expected a file inside the bundle")
        if not stat.S_ISREG(mode):
            raise BadBundle(f"{place}: is no regular file, expected one")
        return size

    def content(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:  as `size_bytes`
        """
        size_bytes = self.size_bytes(name)
        with (self.path / name).open("rb") as file:
            return file.read(size_bytes)

    def strangers(self, _listed: Iterable[str]) -> list[str]:
        """Files beside those listed that must not be there: none."""
        return []


class Zip:
    """The files of a zip, which holds a bundle's files and no others.

    Raises:  BadBundle if an entry is no plain file, has a name that leaves the zip, or claims more than it can hold
    """

    def __init__(self, path: Path, archive: ZipFile) -> None:
        self.path = path
        self._archive = archive
        self._entries: dict[str, ZipInfo] = {}
        for entry in archive.infolist():
            self._require_plain(entry)
            self._entries[entry.filename] = entry
        compressed = sum(entry.compress_size for entry in self._entries.values())
        if compressed > (size := path.stat().st_size):
            raise BadBundle(f"{path}: entries claim {compressed} compressed bytes, the file has {size}")

    def size_bytes(self, name: str) -> int:
        """The size that an entry claims, which its compressed bytes can hold.

        Raises:  OSError if there is none
        """
        return self._entry(name).file_size

    def content(self, name: str) -> bytes:
        """The bytes of an entry, no more of them than it claims.

        Raises:  OSError if there is none, BadBundle if it cannot be read
        """
        entry = self._entry(name)
        try:
            with self._archive.open(entry) as file:
                return file.read(entry.file_size)
        except _ZIP_ERRORS as error:
            raise BadBundle(f"{self.path / name}: cannot be read ({_reason(error)}), expected a whole zip") from error

    def strangers(self, listed: Iterable[str]) -> list[str]:
        """Entries beside those listed, which must not be there."""
        return sorted(self._entries.keys() - set(listed))

    def _entry(self, name: str) -> ZipInfo:
        if name not in self._entries:
            raise FileNotFoundError(ENOENT, os.strerror(ENOENT))
        return self._entries[name]

    def _require_plain(self, entry: ZipInfo) -> None:
        name = entry.orig_filename
        if entry.filename != name or not re.fullmatch(NAME_PATTERN, name):
            raise BadBundle(f"{self.path}: holds {name[:200]!r}, expected names of files inside the bundle")
        if name in self._entries:
            raise BadBundle(f"{self.path}: holds {name} twice, expected each file once")
        place, mode = self.path / name, entry.external_attr >> 16
        if stat.S_ISLNK(mode):
            raise BadBundle(f"{place}: is a symbolic link, expected a file inside the bundle")
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):  # systems without Unix modes write 0
            raise BadBundle(f"{place}: is no regular file, expected one")
        if entry.flag_bits & _ENCRYPTED:
            raise BadBundle(f"{place}: is encrypted, expected a plain entry")
        if entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            raise BadBundle(f"{place}: is compressed by method {entry.compress_type}, expected stored or deflate")
        most = entry.compress_size * (1 if entry.compress_type == ZIP_STORED else _DEFLATE_RATIO_MAX)
        if entry.file_size > most:
            claim = f"claims {entry.file_size} bytes in {entry.compress_size} compressed ones"
            raise BadBundle(f"{place}: {claim}, which hold at most {most}")


@contextmanager
def opened(path: Path) -> Iterator[Folder | Zip]:
    """The files of a folder or of a zip, for as long as they are read.

    Raises:  BadBundle if there is neither, or the zip is not whole
    """
    if path.is_dir():
        yield Folder(path)
        return
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadBundle(f"{path}: is no regular file, expected a bundle, which is a folder or one zip")
        archive = ZipFile(path)
    except _ZIP_ERRORS as error:
        raise BadBundle(f"{path}: {_reason(error)}, expected a bundle, which is a folder or one zip") from error
    with archive:
        yield Zip(path, archive)


def _reason(error: Exception) -> str:
    """Why, in one line without the path, which the sentence has already."""
    said = error.strerror if isinstance(error, OSError) else None
    return repr(said or str(error) or type(error).__name__)[1:-1]
