"""What a page lets a browser do: as little as it says it needs."""

from collections.abc import Mapping

# No page has a form that leaves it, a base of its own, or a place in another site's frame.
_ALWAYS = {"base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'"}


def headers(policy: Mapping[str, str]) -> dict[str, str]:
    """The headers of a page that loads what these directives allow.

    Source:  Content Security Policy Level 3, W3C
    """
    directives = [f"{directive} {sources}" for directive, sources in {**policy, **_ALWAYS}.items()]
    return {
        "content-security-policy": "; ".join(directives),
        "cross-origin-opener-policy": "same-origin",
        "referrer-policy": "no-referrer",
    }
