"""The forms an answer can take, and the choice among them: `format` decides, else `Accept`."""

from collections.abc import Sequence
from enum import Enum

from service.errors import NotAcceptable, found_at, invalid


class Form(Enum):
    """A form of answer: its name in `format=` and its media type."""

    PNG = ("png", "image/png")
    WEBP = ("webp", "image/webp")
    JPEG = ("jpeg", "image/jpeg")
    JSON = ("json", "application/json")
    SAFETENSORS = ("safetensors", "application/vnd.safetensors")
    GIF = ("gif", "image/gif")
    APNG = ("apng", "image/apng")

    def __init__(self, label: str, media_type: str) -> None:
        self.label = label
        self.media_type = media_type


# Many more than any client names; of thousands of them each costs time.
_MOST_RANGES = 64

# Order decides ties: the first is the default.
LATENT_FORMS = (Form.JSON, Form.SAFETENSORS)
GRIDS = (Form.PNG, Form.WEBP, Form.JPEG)
STILL_FORMS = (*GRIDS, Form.JSON, Form.SAFETENSORS)
ANIMATIONS = (Form.GIF, Form.APNG)
PATH_FORMS = STILL_FORMS + ANIMATIONS


def named(forms: Sequence[Form], label: str, *, where: str) -> Form:
    """The form that a request names, in this place.

    Raises:  Invalid if it is none of the forms
    """
    for form in forms:
        if form.label == label:
            return form
    raise invalid(where, got=label, expected=f"one of {', '.join(form.label for form in forms)}")


def accepted(forms: Sequence[Form], accept: str | None) -> Form:
    """The form that `Accept` prefers. An animation is taken only where no other form is accepted.

    Raises:  NotAcceptable if it admits none
    Source:  RFC 9110, section 12.5.1
    """
    if accept is None or accept in {"", "*/*"}:
        return forms[0]
    named = accept.count(",") + accept.count(";") + 1
    if named > _MOST_RANGES:
        raise found_at(
            "Accept", NotAcceptable, got=f"{named:,} types and parameters", expected=f"at most {_MOST_RANGES}"
        )
    ranges = _ranges(accept)
    still = [form for form in forms if form not in ANIMATIONS]
    for group in (still, [form for form in forms if form in ANIMATIONS]):
        best = max(group, key=lambda form: _quality(form, ranges), default=None)
        if best and _quality(best, ranges) > 0:
            return best
    offered = ", ".join(form.media_type for form in forms)
    raise found_at("Accept", NotAcceptable, got=accept, expected=f"one of {offered}")


def _ranges(accept: str) -> dict[str, float]:
    ranges = {}
    for item in accept.split(","):
        media_range, *parameters = (part.strip().lower() for part in item.split(";"))
        ranges[media_range] = _weight(parameters)
    return ranges


def _weight(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                weight = float(parameter[2:])
            except ValueError:
                return 0.0
            return weight if 0 <= weight <= 1 else 0.0  # NaN too
    return 1.0


def _quality(form: Form, ranges: dict[str, float]) -> float:
    """The weight that the most specific matching range gives a form; 0 where none matches."""
    family = form.media_type.split("/")[0]
    for media_range in (form.media_type, f"{family}/*", "*/*"):
        if media_range in ranges:
            return ranges[media_range]
    return 0.0
