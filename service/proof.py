"""A graph's answers on a bundle's probe, compared with what the source made of it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from service import bf16, differences
from service.bundle import BadBundle, Bundle, Probe
from service.graph import Arrays, Graph
from service.machine import BadEngine
from service.manifest import DECODER, ENCODER, SCORER, AnyTolerance, Tolerance


def require(bundle: Bundle, name: str, graph: Graph) -> None:
    """Nothing, if the graph of this name answers the probe as the source did, within the manifest's tolerance, or in
    bf16 within its own.

    Raises:  BadBundle if it does not
    """
    probe, manifest = bundle.probe, bundle.manifest
    given: dict[str, Arrays] = {ENCODER: (probe.image,), DECODER: (probe.z,), SCORER: (probe.image, probe.z)}
    answers: dict[str, Any] = {
        "mu": probe.mu,
        "logvar": probe.logvar,
        "image": probe.decoded,
        "log_likelihood": probe.log_likelihood,
    }
    tolerance = bf16.TOLERANCE if graph.hint else manifest.tolerance
    for output, found in zip(graph.outputs, graph.tried(*given[name]), strict=True):
        expected = answers[output]
        if found.shape != expected.shape:
            raise BadBundle(f"{graph.path}: {output} is {found.shape} on the probe, expected {expected.shape}")
        fault = _fault(
            output, found, expected, logvar=probe.logvar, scale_head=manifest.scale_head, tolerance=tolerance
        )
        if fault:
            raise BadBundle(f"{graph.path}: {output} {fault}")


def measured_in_bf16(probe: Probe, *, encoder: Graph, decoder: Graph, exact: Graph) -> str:
    """How far graphs in bf16 are from the probe, once it is sure that they are: to OpenVINO a hint that it cannot read
    is none, and it answers in fp32, as `exact` does, the same encoder.

    Raises:  BadEngine if the encoder answers to the bit what the exact one does
    """
    found = encoder.run(probe.image)
    if all(np.array_equal(mine, its) for mine, its in zip(found, exact.run(probe.image), strict=True)):
        raise BadEngine(f"{exact.path}: OpenVINO answers the probe in bf16 as in fp32, to the bit")
    sigma = differences.in_sigma(found[0], probe.mu, probe.logvar).max()
    (image,) = decoder.run(probe.z)
    return f"mu {sigma:.2g} sigma from the probe's, pictures {differences.psnr_db(image, probe.decoded):.3g} dB"


def _fault(
    name: str,
    found: NDArray[Any],
    expected: NDArray[Any],
    *,
    logvar: NDArray[Any] | None,
    scale_head: str | None,
    tolerance: AnyTolerance,
) -> str | None:
    """What an answer differs by from the probe's, if that is more than is tolerated."""
    if isinstance(tolerance, Tolerance):
        match name:
            case "mu":
                apart = differences.of_mu(found, expected)
            case "logvar":
                apart = differences.of_logvar(found, expected, scale_head=scale_head)
            case "log_likelihood":
                apart = differences.of_sums(found, expected)
            case _:
                apart = differences.absolute(found, expected)
        return _excess(apart.max(), getattr(tolerance, name))
    if name == "mu":
        apart = differences.in_sigma(found, expected, logvar)
        return _excess(apart.max(), tolerance.mu_in_sigma, unit=" sigma") or _excess(
            apart.mean(), tolerance.mu_in_sigma_mean, unit=" sigma on average"
        )
    if name == "image" and not (psnr_db := differences.psnr_db(found, expected)) >= tolerance.psnr_db:
        return f"is {psnr_db:.3g} dB from the probe's, the tolerance is {tolerance.psnr_db:g} dB"
    if name == "logvar":
        apart = differences.of_logvar(found, expected, scale_head=scale_head)
        return _excess(apart.max(), tolerance.logvar) or _excess(
            apart.mean(), tolerance.logvar_mean, unit=" on average"
        )
    return None  # log-likelihoods stay in fp32, and have no tolerance of their own below it


def _excess(found: float, allowed: float | None, *, unit: str = "") -> str | None:
    """What to say of a difference that is more than is allowed; None, if it is not, or the bundle states no bound."""
    if allowed is None or found <= allowed:  # which NaN is not
        return None
    return f"differs from the probe by {found:.3g}{unit}, the tolerance is {allowed:g}{unit}"
