"""Files that are whole or absent, whatever happens while they are written."""

import os
from collections.abc import Mapping
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """The whole file or none of it, also if the machine stops half way; its folder is made for it."""
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Files that are whole or absent, each; none gets its name before the disk holds all, and then they do in order.

    Raises:  OSError with the name of the file that cannot be written
    """
    temporaries = {path: path.with_name(path.name + ".tmp") for path in contents}
    for path in contents:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        for path, content in contents.items():
            with temporaries[path].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            temporary.replace(path)
    except OSError as error:  # which names the temporary file or none
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)  # of a disk that is full, what did get written would fill the rest
