"""What clients are told of a model's trustworthiness, by itself and with each answer that is not to be trusted.

The verdicts are the manifest's: whoever measured a model has judged its figures, and this service only passes that on.
"""

from collections.abc import Sequence

from service.call import Call, O
from service.manifest import PRIOR, Manifest, Trust, Verdict
from service.prior import FittedPrior, Prior
from service.schemas import (
    InterpolateOptions,
    SampleOptions,
    SampleTrust,
    TrustAnswer,
    VerdictAnswer,
    WarningAnswer,
)

_NOT_MEASURED = "Not measured."
_NOTHING = Trust(standard=None, fitted=None, interpolate=None)


def described(manifest: Manifest) -> TrustAnswer:
    """What of a model is to be trusted, and why."""
    trust = _trust(manifest)
    no_standard = "An autoencoder knows no N(0, I)." if manifest.prior == "none" else _NOT_MEASURED
    no_fitted = _NOT_MEASURED if PRIOR in manifest.files else "There is no fitted prior."
    return TrustAnswer(
        sample=SampleTrust(standard=_told(trust.standard, no_standard), fitted=_told(trust.fitted, no_fitted)),
        interpolate=_told(trust.interpolate, _NOT_MEASURED),
    )


def of_samples(call: Call[SampleOptions], prior: Prior) -> Call[SampleOptions]:
    """The call, with a warning if samples of this prior are not to be trusted."""
    trust = _trust(call.model.manifest)
    verdict = trust.fitted if isinstance(prior, FittedPrior) else trust.standard
    if verdict is None or verdict.trusted:
        return call
    return _warned(call, WarningAnswer(type="untrusted-samples", detail=verdict.reason))


def of_interpolation(call: Call[InterpolateOptions]) -> Call[InterpolateOptions]:
    """The call, with a warning if what lies between two latents is not to be trusted."""
    verdict = _trust(call.model.manifest).interpolate
    if verdict is None or verdict.trusted:
        return call
    return _warned(call, WarningAnswer(type="untrusted-interpolation", detail=verdict.reason))


def header(warnings: Sequence[WarningAnswer]) -> str:
    """The header of an answer that is not to be trusted: a list of tokens, each with its reason as parameter.

    The Warning field of old has no successor, and was for caches.

    Source:  RFC 9651, sections 3.1 and 3.1.2; RFC 9111, section 5.5
    """
    return ", ".join(f"{warning.type};detail={_quoted(warning.detail)}" for warning in warnings)


def _warned(call: Call[O], warning: WarningAnswer) -> Call[O]:
    return call._replace(warnings=(warning,), is_of_digest=False)


def _trust(manifest: Manifest) -> Trust:
    diagnostics = manifest.diagnostics
    return diagnostics.trust or _NOTHING if diagnostics else _NOTHING


def _told(verdict: Verdict | None, otherwise: str) -> VerdictAnswer:
    if verdict is None:
        return VerdictAnswer(trusted=None, reason=otherwise)
    return VerdictAnswer(trusted=verdict.trusted, reason=verdict.reason)


def _quoted(text: str) -> str:
    """A string of a structured field; the manifest's pattern has kept it to ASCII."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
