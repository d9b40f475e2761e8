"""GET /models/{name}/card: what a person sees, what a stranger's card cannot do, and what caches are told."""

import base64
import html
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from service import cards
from service.bundle import BadBundle, Bundle, read
from service.settings import SHIPPED_BUNDLE
from tests.service.keyring import bearer, lines, tokens, write
from tests.service.linear import linear, write_linear
from tests.service.wire import pixels, png
from tests.serving import serving, stopped

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
RED = png(pixels(1, (4, 5, 3))[0])
CARD = """# mine

| figure | value |
| --- | --- |
| kl | 22.91 nats |

- [ ] Somebody has looked.

![Samples](pictures/samples.png) and [more](https://example.org/a)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cards")
    write_linear(folder / "mine", linear(), others={"card.md": CARD.encode(), "pictures/samples.png": RED})
    write_linear(folder / "bare", linear())
    return folder


@pytest.fixture(scope="module")
def bare(folder: Path) -> Bundle:
    return read(folder / "bare")


def shown(bare: Bundle, text: str, **pictures: bytes) -> str:
    """The page of a card, as HTML."""
    named = {f"pictures/{name}.png": content for name, content in pictures.items()}
    page = cards.page(replace(bare, card=text.encode(), pictures=named))
    assert page is not None
    return page.content.decode()


@pytest.fixture(scope="module")
def http(folder: Path) -> Iterator[httpx.Client]:
    folders = [str(folder / "mine"), str(folder / "bare"), str(SHIPPED_BUNDLE)]
    with serving(folders) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        yield client


def test_a_card_is_one_page_with_its_pictures_inside(http: httpx.Client) -> None:
    answer = http.get("/models/mine/card")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    page = answer.text
    assert "<h1>mine</h1>" in page
    assert re.search(r"<td>kl</td>\s*<td>22.91 nats</td>", page)
    assert "<li>\N{BALLOT BOX} Somebody has looked.</li>" in page
    assert f'<img src="data:image/png;base64,{base64.b64encode(RED).decode()}" alt="Samples">' in page
    assert '<a href="https://example.org/a">more</a>' in page
    assert http.get("/models/mine").json()["digest"] in page


def test_a_model_leads_to_its_card(http: httpx.Client) -> None:
    assert http.get("/models/mine").json()["card"] == "/models/mine/card"
    assert http.get("/models/bare").json()["card"] is None
    digest = http.get("/models/mine").json()["digest"]
    assert http.get(f"/models/mine@{digest}/card").content == http.get("/models/mine/card").content


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/models/bare/card", r"card: got none in bare@[0-9a-f]{64}, expected a bundle with card\.md"),
        ("/models/nobody/card", "path.name: got nobody, expected one of .*"),
    ],
)
def test_where_there_is_no_card_404_says_why(http: httpx.Client, path: str, said: str) -> None:
    answer = http.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert re.fullmatch(said, answer.json()["detail"])


def test_head_tells_of_a_card_what_get_does(http: httpx.Client) -> None:
    got, headed = http.get("/models/mine/card"), http.head("/models/mine/card")
    assert (headed.status_code, headed.content) == (200, b"")
    for name in ("content-length", "content-type", "etag", "cache-control", "content-security-policy"):
        assert headed.headers[name] == got.headers[name]


def test_a_cache_that_holds_the_page_gets_304(http: httpx.Client) -> None:
    first = http.get("/models/mine/card")
    assert first.headers["cache-control"] == "no-cache"
    etag = first.headers["etag"]
    for held in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = http.get("/models/mine/card", headers={"if-none-match": held})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert http.get("/models/mine/card", headers={"if-none-match": '"other"'}).status_code == 200


def test_openapi_lists_what_a_card_tells_caches(http: httpx.Client) -> None:
    responses = http.get("/openapi.json").json()["paths"]["/models/{name}/card"]["get"]["responses"]
    for status in ("200", "304"):
        assert {"Cache-Control", "ETag"} <= responses[status]["headers"].keys()


def test_another_card_under_the_same_digest_has_another_etag(bare: Bundle) -> None:
    pages = [cards.page(replace(bare, card=text)) for text in (b"# one", b"# two", b"# one")]
    one, two, again = (page.etag for page in pages if page)
    assert one != two
    assert one == again


def test_keys_open_a_card_too_and_keep_it_from_shared_caches(folder: Path, tmp_path: Path) -> None:
    held = tokens("reader")
    keys = write(tmp_path / "keys.toml", lines(held))
    with serving([str(folder / "mine"), "--api-keys-file", str(keys)]) as running:
        url = f"{running.url}/models/mine/card"
        assert httpx.get(url).status_code == 401
        answer = httpx.get(url, headers=bearer(held["reader"]))
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "private, no-cache")


# A stranger's card


def test_a_page_may_load_nothing_and_run_nothing(http: httpx.Client) -> None:
    answer = http.get("/models/mine/card")
    said = (part.split() for part in answer.headers["content-security-policy"].split("; "))
    policy = {name: sources for name, *sources in said}
    assert policy.pop("style-src")[0].startswith("'sha256-")
    assert policy == {
        "default-src": ["'none'"],
        "img-src": ["data:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
    }
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        'a <img src=x onerror="alert(1)"> b',
        "| <b onclick=x>a</b> |\n| --- |\n| </table></body><script>x</script> |",
        "`</style><script>x</script>`",
        '![" onerror="alert(1)](pictures/a.png)',
    ],
)
def test_html_in_a_card_is_text(bare: Bundle, text: str) -> None:
    body = shown(bare, text, a=RED).split("<body>")[1].replace(base64.b64encode(RED).decode(), "")
    tags = set(re.findall(r"<\s*/?\s*([a-z0-9]+)", body))
    assert tags <= {"p", "table", "thead", "tbody", "tr", "th", "td", "code", "img", "footer", "body", "html"}
    assert not re.search(r"<[^>]*\son\w+\s*=", re.sub(r'"[^"]*"', '""', body))


@pytest.mark.parametrize("link", ["javascript:alert(1)", "vbscript:x", "data:text/html,x", "file:///etc/passwd"])
def test_a_link_that_would_run_something_is_text(bare: Bundle, link: str) -> None:
    assert "href" not in shown(bare, f"[look]({link})").split("<body>")[1]


@pytest.mark.parametrize("source", ["https://example.org/a.png", "pictures/b.png", "/models", "pictures/c.png"])
def test_of_a_picture_that_the_bundle_has_not_its_description_stands_there(bare: Bundle, source: str) -> None:
    page = shown(bare, f"before ![a <b> c]({source}) after", a=RED, c=b"GIF89a")
    assert "<p>before a &lt;b&gt; c after</p>" in page
    assert "<img" not in page


@pytest.mark.parametrize("source", ["references", "duplicate_refs", "REFERENCES", "b"])
def test_a_picture_may_be_called_like_what_the_renderer_keeps(bare: Bundle, source: str) -> None:
    assert "shown as words" in shown(bare, f"![shown as words]({source})\n\n[a]: b\n\n[a]: c\n")


def test_a_picture_stands_in_the_page_once(bare: Bundle) -> None:
    page = shown(bare, "![one](pictures/a.png)\n\n" * 50, a=RED)
    assert page.count("<img") == 1
    assert page.count("<p>one</p>") == 49


def test_columns_are_aligned_as_the_card_says_by_the_style_that_the_policy_allows(bare: Bundle) -> None:
    body = shown(bare, "| a | b | c |\n| :-- | :-: | --: |\n| 1 | 2 | 3 |").split("<body>")[1]
    cells = ['<td class="left">1</td>', '<td class="center">2</td>', '<td class="right">3</td>']
    assert [line for line in body.splitlines() if "<td" in line] == cells
    assert "style=" not in body


def test_a_card_that_is_no_text_or_too_long_stops_the_start(bare: Bundle, tmp_path: Path) -> None:
    place = tmp_path / "b"
    write_linear(place, linear(), others={"card.md": b"\xff\xfe"})
    assert stopped(str(place)) == f"{place / 'card.md'}: holds bytes that are not UTF-8, expected Markdown"
    with pytest.raises(BadBundle, match=r"bare/card\.md: has 262145 bytes, expected at most 262144"):
        cards.page(replace(bare, card=b"x" * (2**18 + 1)))


# The shipped one


def test_the_shipped_card_shows_all_its_pictures(http: httpx.Client) -> None:
    page = http.get("/models/fashion/card").text
    pictures = sorted((SHIPPED_BUNDLE / "pictures").iterdir())
    assert page.count("<img") == len(pictures) > 5
    for path in pictures:
        assert base64.b64encode(path.read_bytes()).decode() in page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_a_card_and_has_nothing_to_complain_of(http: httpx.Client, tmp_path: Path) -> None:
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        f"--user-data-dir={tmp_path}", "--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom",
        str(http.base_url.join("/models/fashion/card")),
    ]  # fmt: skip
    seen = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert seen.returncode == 0, seen.stderr
    assert "<h1>fashion</h1>" in html.unescape(seen.stdout)
    assert re.findall(r".*CONSOLE.*", seen.stderr) == []
