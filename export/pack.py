"""A bundle as one file: a zip that is the same to the byte wherever it is made."""

import json
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from export.bundle import CannotWrite, staged
from export.proof import prove
from service.bundle import read
from service.manifest import MANIFEST

# The earliest that a zip can say.
_TIME = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
_PLAIN_FILE = 0o100644 << 16


def pack(folder: Path, target: Path) -> int:
    """Bytes of the zip that now holds a bundle, and that was read back with proof before it got its name.

    Nothing is compressed: weights hardly shrink, and the reader knows a file's size before it reads it.

    Raises:  BadBundle if the folder holds no sound one; CannotWrite if it states no licence, or the target exists
    """
    manifest = read(folder).manifest
    if not folder.is_dir():
        raise CannotWrite(f"{folder}: got a file, expected the folder of a bundle")
    if not (manifest.licence or "").strip():
        how = "make it again with --licence 'NAME; what it was trained on'"
        found = json.dumps(manifest.licence)
        raise CannotWrite(
            f"{folder / MANIFEST}: licence is {found}, expected one in a bundle that is to be shared; {how}"
        )
    prove(folder)  # before the zip, whose place is gone when a person reads of it
    with staged(target) as place:
        with ZipFile(place, "w", ZIP_STORED) as archive:
            for name in sorted((MANIFEST, *manifest.files)):
                archive.writestr(_member(name), (folder / name).read_bytes())
        prove(place)
        return place.stat().st_size


def _member(name: str) -> ZipInfo:
    """What a zip says of a file, none of it from this machine."""
    member = ZipInfo(name, date_time=_TIME)
    member.create_system = _UNIX
    member.external_attr = _PLAIN_FILE
    return member
