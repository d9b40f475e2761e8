"""What was measured, on what machine and when: a JSON file, and tables as Markdown."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "results"
_KEPT = FOLDER.relative_to(FOLDER.parents[1]).as_posix()  # the same, as git knows it

_PACKAGES = ("vaeserve", "onnxruntime", "onnxruntime-openvino", "numpy", "fastapi", "starlette", "uvicorn", "uvloop",
             "httptools", "orjson", "pillow", "isal", "torch")  # fmt: skip


def keep(name: str, measured: Mapping[str, Any], *, lacks: Iterable[str] = ()) -> str:
    """Where what a command measured is kept, in a sentence. A run that lacks a part leaves a file that is there as it
    is, since documents quote it.
    """
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    if (parts := sorted(lacks)) and path.exists():
        return f"Not kept without {', '.join(parts)}: {path.name} is as it was"
    document = {"machine": machine(), **measured}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return f"Kept in {path.name}"


def machine() -> dict[str, Any]:
    """What the figures hang on."""
    return {
        "date": datetime.now().astimezone().date().isoformat(),
        "commit": _commit(),
        "cpu": cpu(Path("/proc/cpuinfo").read_text(encoding="utf-8")),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def on_machine() -> str:
    """The machine in a line."""
    found = machine()
    return f"{found['cpu']}, {found['cores']} cores, Python {found['python']}, {found['date']}"


def cpu(cpuinfo: str) -> str:
    """The processor's name with its family and model: what is rented goes by one name over generations of them, of
    which one computes twice as fast as another.
    """
    first = cpuinfo.partition("\n\n")[0].splitlines()
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first)}
    if "model name" not in told:
        return platform.machine()
    if not {"cpu family", "model"} <= told.keys():  # which some architectures do not know
        return told["model name"]
    return f"{told['model name']} (family {told['cpu family']}, model {told['model']})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned for a terminal."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (head, rule, *rows)
    )


def _commit() -> str | None:
    """Of the code that was measured, "-dirty" behind it where that was not all committed; None outside a checkout.

    What earlier commands have kept is no code.
    """
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":(top)", f":(exclude,top){_KEPT}")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
