"""A bundle's card as a page: its Markdown and pictures, in one file that loads and runs nothing."""

import base64
import hashlib
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from service import page_headers
from service.bundle import BadBundle, Bundle
from service.manifest import CARD, MAX_CARD_BYTES

_PNG = b"\x89PNG\r\n\x1a\n"
_UNTICKED = "[ ] "

_STYLE = """
:root { color-scheme: light dark; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem; font: 1rem/1.5 system-ui, sans-serif; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #8888; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: 0.3rem 0.8rem 0.3rem 0; border-bottom: 1px solid #8884; text-align: left; vertical-align: top; }
td { overflow-wrap: break-word; }
.center { text-align: center; }
.right { text-align: right; }
img { max-width: 100%; height: auto; background: #fff; }
footer { margin-top: 2.5rem; font-size: 0.8rem; overflow-wrap: anywhere; }
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: model card</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
{card}<footer>{label}</footer>
</body>
</html>
"""
_POLICY = {
    "default-src": "'none'",
    "style-src": f"'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'",
    "img-src": "data:",
}
HEADERS = page_headers.headers(_POLICY)


@dataclass(frozen=True)
class Page:
    """A card as HTML, and what tells a cache that this is the one it holds."""

    content: bytes
    etag: str


def page(bundle: Bundle) -> Page | None:
    """The page of a bundle's card, or None where it has none.

    The card is a stranger's text: HTML in it is shown as text, and of its pictures those alone that the bundle holds.

    Raises:  BadBundle if the card is no text, or too long
    """
    if bundle.card is None:
        return None
    if len(bundle.card) > MAX_CARD_BYTES:
        raise BadBundle(f"{bundle.path / CARD}: has {len(bundle.card)} bytes, expected at most {MAX_CARD_BYTES}")
    try:
        text = bundle.card.decode()
    except UnicodeDecodeError as error:
        raise BadBundle(f"{bundle.path / CARD}: holds bytes that are not UTF-8, expected Markdown") from error
    name, label = escape(bundle.manifest.name), escape(bundle.manifest.label)
    content = _PAGE.format(name=name, style=_STYLE, card=_html(text, bundle.pictures), label=label).encode()
    return Page(content, etag=f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _html(text: str, pictures: dict[str, bytes]) -> str:
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.add_render_rule("image", _picture)
    # Each picture stands in the page once, or a short card could make a page of any size.
    env = {"pictures": dict(pictures)}
    tokens = markdown.parse(text, env)
    for token in tokens:
        if aligned := token.attrs.pop("style", None):  # of a table's column; the policy lets no element have a style
            token.attrs["class"] = str(aligned).removeprefix("text-align:")
        first = token.children[0] if token.children else None
        if first and first.content.startswith(_UNTICKED):
            first.content = "\N{BALLOT BOX} " + first.content.removeprefix(_UNTICKED)
    return str(markdown.renderer.render(tokens, markdown.options, env))


def _picture(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: MutableMapping[str, Any]
) -> str:
    """A picture of the bundle as part of the page; of any other, what it is called."""
    token = tokens[index]
    described = escape(renderer.renderInlineAsText(token.children or (), options, env))
    content = env["pictures"].pop(str(token.attrs["src"]), b"")
    if not content.startswith(_PNG):
        return described
    return f'<img src="data:image/png;base64,{base64.b64encode(content).decode()}" alt="{described}">'
