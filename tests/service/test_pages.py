"""Pages for people: their policy, and what a browser makes of it."""

import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAGES = ["/docs", "/docs/start.js"]


def policy(answer: httpx.Response) -> dict[str, set[str]]:
    directives = [part.split() for part in answer.headers["content-security-policy"].split("; ")]
    return {name: set(sources) for name, *sources in directives}


@pytest.mark.parametrize("path", PAGES)
def test_a_page_lets_a_browser_load_and_run_only_files_of_this_server(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    allowed = policy(answer)
    assert allowed["default-src"] == {"'none'"}
    assert allowed["script-src"] == allowed["style-src"] == allowed["connect-src"] == {"'self'"}
    assert allowed["img-src"] == {"'self'", "data:", "blob:"}
    for forbidden in ("base-uri", "form-action", "frame-ancestors"):
        assert allowed[forbidden] == {"'none'"}
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"


@pytest.mark.parametrize("path", ["/docs", "/docs/assets/swagger-ui.css", "/sample?seed=1", "/sample?n=0", "/nothing"])
def test_no_answer_is_taken_for_anything_but_what_it_says_it_is(client: httpx.Client, path: str) -> None:
    assert client.get(path).headers.get_list("x-content-type-options") == ["nosniff"]


def test_no_script_or_style_stands_in_a_page(client: httpx.Client) -> None:
    page = client.get("/docs").text
    assert re.findall(r"<script[^>]*>([^<]+)</script>", page) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:", page) == []
    assert page.count("<script src=") == page.count("<script") == 2


RANGES = [
    "bytes=0-9",
    "bytes=-5",
    "bytes=9-0",
    "bytes=99999999-",
    "bytes=x",
    "bytes=",
    "bytes",
    "lines=1-2",
    "",
    "bytes=0-1,5-6",
]


@pytest.mark.parametrize("path", ["/docs", "/docs/start.js", "/docs/assets/swagger-ui.css", "/models"])
@pytest.mark.parametrize("sent", RANGES)
def test_who_asks_for_a_part_gets_all_of_it(client: httpx.Client, path: str, sent: str) -> None:
    answer = client.get(path, headers={"range": sent})
    assert (answer.status_code, answer.content) == (200, client.get(path).content)
    assert "accept-ranges" not in answer.headers


@pytest.mark.parametrize("path", PAGES)
def test_head_tells_of_a_page_what_get_does(client: httpx.Client, path: str) -> None:
    got, headed = client.get(path), client.head(path)
    assert (headed.status_code, headed.content) == (200, b"")
    assert headed.headers["content-length"] == str(len(got.content))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_every_operation_and_has_nothing_to_complain_of(
    client: httpx.Client, server_url: str, tmp_path: Path
) -> None:
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        f"--user-data-dir={tmp_path}", "--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom",
        f"{server_url}/docs",
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert shown.returncode == 0, shown.stderr
    document = client.get("/openapi.json").json()
    operations = sorted(path for path, item in document["paths"].items() for _ in item)
    assert sorted(re.findall(r'data-path="([^"]+)"', shown.stdout)) == operations
    assert re.findall(r".*CONSOLE.*", shown.stderr) == []
