"""Whether what a service makes of a run is to be trusted: a verdict and its reason for each prior and for paths."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.report.checks import Check, latents_as_the_prior, realism, tells_of_activity

_BETWEEN = "Pictures between two codes were not measured; they are judged by how near all codes are to N(0, I)."
_NOTHING_BETWEEN = (
    "Nothing in an autoencoder's objective says what lies between two codes, and pictures there were not measured:"
    " look at the card's interpolations."
)


@dataclass(frozen=True)
class Verdict:
    """Whether something is to be trusted, and why, in a sentence or more."""

    trusted: bool
    reason: str


@dataclass(frozen=True)
class Trust:
    """What is to be trusted; None where there are no figures, or no such prior."""

    standard: Verdict | None
    """Samples of N(0, I)."""
    fitted: Verdict | None
    """Samples of the fitted prior."""
    interpolate: Verdict | None
    """Paths between two codes."""


def judge(family: str, metrics: Mapping[str, Any]) -> Trust:
    """What the figures of an evaluation say.

    Pictures between two codes are not measured by an evaluation. In pixels, two test pictures laid over each other pass
    for real ones: density and coverage would praise a decoder that does just that. `vae-train study` measures them in
    the features of a classifier.
    """
    collapse = _collapse(family, metrics)
    fitted = _verdict(collapse, realism(metrics, "fitted"))
    if family == "autoencoder":
        return Trust(standard=None, fitted=fitted, interpolate=Verdict(False, _NOTHING_BETWEEN))
    standard = _verdict(collapse, latents_as_the_prior(metrics), realism(metrics, "standard"))
    between = None if standard is None else Verdict(standard.trusted, f"{_BETWEEN} {standard.reason}")
    return Trust(standard=standard, fitted=fitted, interpolate=between)


def _collapse(family: str, metrics: Mapping[str, Any]) -> Check | None:
    """What to know of a decoder that ignores z, which may otherwise look well: its one picture may be near to many."""
    if not tells_of_activity(family, metrics) or metrics["active_units"] != 0:
        return None
    return Check("Latents in use", False, "No latent is active: every z is decoded to the same picture.")


def _verdict(*found: Check | None) -> Verdict | None:
    """What checks say together; those without their figures say nothing."""
    known = [check for check in found if check is not None]
    if not known:
        return None
    return Verdict(all(check.is_fine for check in known), " ".join(check.found for check in known))
