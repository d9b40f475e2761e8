"""CPU time counts for the file of the service, or of uvicorn, that it was spent for."""

from pathlib import Path

import pytest
import uvicorn

from benchmarks.stages import LOOP, UVICORN, by_file, place

ROOT = Path(__file__).parents[2]
IMAGES, LATENTS = (str(ROOT / "service" / name) for name in ("images.py", "routes/latents.py"))
PROTOCOL = str(Path(uvicorn.__file__).parent / "protocols" / "http" / "httptools_impl.py")
BENEATH = [(str(Path(uvicorn.__file__).parent / "server.py"), "run"), ("/usr/lib/python3/asyncio/runners.py", "run")]


@pytest.mark.parametrize(
    ("stack", "expected"),
    [
        (
            [("/site-packages/PIL/Image.py", "open"), (IMAGES, "read"), (LATENTS, "encode")],
            ("service/images.py", "read"),
        ),
        ([(LATENTS, "encode"), (PROTOCOL, "run_asgi")], ("service/routes/latents.py", "encode")),
        ([(PROTOCOL, "send"), (LATENTS, "encode")], (UVICORN, "send")),
        (
            [("/site-packages/starlette/responses.py", "init"), (LATENTS, "encode")],
            ("service/routes/latents.py", "encode"),
        ),
        ([], (LOOP, "")),
    ],
)
def test_a_stack_counts_for_its_innermost_file(stack: list[tuple[str, str]], expected: tuple[str, str]) -> None:
    assert place(iter(stack + BENEATH)) == expected


def test_a_file_counts_all_its_functions_the_largest_first() -> None:
    found = by_file({("a.py", "f"): 1.0, ("b.py", "g"): 4.0, ("a.py", "h"): 2.0})
    assert list(found.items()) == [("b.py", 4.0), ("a.py", 3.0)]
