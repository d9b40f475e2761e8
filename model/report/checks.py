"""What a run's figures say about serving it: each check is a sentence, and whether somebody should look closer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from model.checkpoint import RunConfig
from model.coverage import EXPECTED_DENSITY

# A handful of clamped values among thousands does no harm; more of them, and a figure is the clamp's.
_CLAMPED_SHARE = 0.001
# Moments of latents that the prior is taken for; samples start to differ visibly somewhere beyond them.
_MEAN_MAX, _VARIANCE_MIN, _VARIANCE_MAX = 0.5, 0.5, 2.0
# Of what real pictures would have. Density is above that for any smooth picture, so it tells only when it is low.
_REALISTIC_SHARE = 0.5
# The decoder's means are smoother than pictures, which alone brings them nearer; half the distance is more than that.
_COPY_RATIO = 0.5
# Samples nearer to a training picture than 99 % of test pictures are: one in a hundred of real pictures would be.
_NEAR_SHARE = 0.05
# Nats lost to overfitting, as a share of what the latents carry.
_LOST_SHARE = 0.1
# Pictures for which fewer than ten weights make the mean of all.
_FEW_DRAWS, _FEW_DRAWS_SHARE = 10, 0.1


@dataclass(frozen=True)
class Check:
    """One thing to know before a model is served."""

    name: str
    is_fine: bool
    found: str
    """What was found, in a sentence with its number."""


@dataclass(frozen=True)
class NllFigure:
    """The negative log-likelihood by importance sampling.

    Units:   nats, mean over pictures
    """

    draws: int
    nats: float
    standard_error: float | None
    mean_effective_draws: float | None
    effective_draws: float | None
    """Of the picture in the middle."""
    few_draws_share: float | None
    """Pictures with fewer than ten effective draws."""


def nll_estimates(metrics: Mapping[str, Any]) -> list[NllFigure]:
    """Estimates at all numbers of draws, the fewest first."""
    found = figure(metrics, "nll") or {}
    return [
        NllFigure(
            draws=draws,
            nats=found[str(draws)]["nll"],
            standard_error=found[str(draws)].get("standard_error"),
            mean_effective_draws=found[str(draws)].get("effective_samples"),
            effective_draws=found[str(draws)].get("effective_samples_median"),
            few_draws_share=found[str(draws)].get("effective_samples_below_10"),
        )
        for draws in sorted(int(name) for name in found if name.isdecimal())
    ]


def checks(config: RunConfig, metrics: Mapping[str, Any], *, history: Sequence[Mapping[str, Any]]) -> list[Check]:
    """What the figures at hand say; a check that lacks its figure is left out."""
    found = [
        _latents_in_use(config, metrics),
        _logvar_in_range(metrics),
        latents_as_the_prior(metrics) if config.model.family == "vae" else None,
        _prior(config, metrics),
        _served_samples(config, metrics),
        _copies(metrics),
        _likelihood(metrics),
        _training_at_its_end(config, history),
        _overfitting(config, metrics, history),
        _test_pictures(config, metrics),
    ]
    return [check for check in found if check is not None]


def figure(metrics: Mapping[str, Any], *path: str) -> Any:
    """The figure at a path of names, None where there is none."""
    found: Any = metrics
    for name in path:
        if not isinstance(found, Mapping):
            return None
        found = found.get(name)
    return found


def _latents_in_use(config: RunConfig, metrics: Mapping[str, Any]) -> Check | None:
    if not tells_of_activity(config.model.family, metrics):
        return None
    active, latent_dim = metrics["active_units"], config.model.latent_dim
    sentence = f"{active:,} of {latent_dim:,} latents are active."
    if active == 0:
        sentence += " The decoder ignores z: every sample is the same picture."
    elif active < latent_dim:
        sentence += f" The {latent_dim - active:,} others carry nothing; a run with fewer would serve the same."
    return Check("Latents in use", active == latent_dim, sentence)


def tells_of_activity(family: str, metrics: Mapping[str, Any]) -> bool:
    """Whether the count of active units says anything: it takes two pictures for mu to vary over, and the scale of
    N(0, I), which an autoencoder's codes have not.
    """
    return (
        family == "vae"
        and figure(metrics, "active_units") is not None
        and (figure(metrics, "protocol", "images") or 0) > 1
    )


def _logvar_in_range(metrics: Mapping[str, Any]) -> Check | None:
    share = figure(metrics, "aggregate", "logvar_at_clamp")
    if share is None:
        return None
    sentence = (
        f"{share:.2%} of log variances lie at an end of their range." if share else "None lies at an end of its range."
    )
    if share > _CLAMPED_SHARE:
        sentence += " There, kl and scores are the clamp's and not the model's."
    return Check("Log variances", share <= _CLAMPED_SHARE, sentence)


def latents_as_the_prior(metrics: Mapping[str, Any]) -> Check | None:
    """Whether the moments of all posteriors together are near those of N(0, I)."""
    means, variances = figure(metrics, "aggregate", "mean"), figure(metrics, "aggregate", "variance")
    if not means or not variances:
        return None
    mean, low, high = max(map(abs, means)), min(variances), max(variances)
    is_fine = mean <= _MEAN_MAX and low >= _VARIANCE_MIN and high <= _VARIANCE_MAX
    sentence = (
        f"Over the test pictures latents have means up to {mean:.2f} from 0 and variances of {low:.2f} to {high:.2f}."
    )
    if not is_fine:
        sentence += " N(0, I) has 0 and 1: its samples come from places where few pictures are."
    return Check("Latents against the prior", is_fine, sentence)


def _prior(config: RunConfig, metrics: Mapping[str, Any]) -> Check | None:
    is_fitted = figure(metrics, "samples", "fitted") is not None
    if config.model.family == "autoencoder":
        sentence = (
            "Samples come from the fitted prior." if is_fitted else "/sample will refuse: there is no fitted prior."
        )
        return Check("An autoencoder has no prior", is_fitted, sentence)
    if config.training.beta == 0:
        sentence = "Trained without the KL term: latents were never drawn towards N(0, I), which /sample takes unasked."
        return Check("Prior", False, sentence + (" Ask for prior=fitted." if is_fitted else ""))
    return None


def realism(metrics: Mapping[str, Any], prior: str) -> Check | None:
    """How samples of a prior, `standard` or `fitted`, lie among test pictures."""
    found = figure(metrics, "samples", prior) or {}
    coverage, density = found.get("coverage"), found.get("density")
    if coverage is None:
        return None
    expected = found.get("expected_coverage") or 1.0
    where = "N(0, I)" if prior == "standard" else "the fitted prior"
    sentence = (
        f"Samples from {where} cover {coverage:.0%} of the test pictures; real pictures would cover {expected:.0%}."
    )
    is_fine = coverage >= _REALISTIC_SHARE * expected
    if density is not None:
        sentence += (
            f" They lie among them with a density of {density:.2f}; real pictures would have {EXPECTED_DENSITY:g}."
        )
        is_fine = is_fine and density >= _REALISTIC_SHARE * EXPECTED_DENSITY
    return Check("Realism of samples", is_fine, sentence)


def _served_samples(config: RunConfig, metrics: Mapping[str, Any]) -> Check | None:
    """Realism of what /sample gives unasked; where there is a choice, also what it would give with `prior=fitted`."""
    if config.model.family == "autoencoder":
        return realism(metrics, "fitted")
    standard, coverage = realism(metrics, "standard"), figure(metrics, "samples", "fitted", "coverage")
    if standard is None or coverage is None:
        return standard
    return replace(standard, found=f"{standard.found} With prior=fitted they cover {coverage:.0%}.")


def _copies(metrics: Mapping[str, Any]) -> Check | None:
    # Looked for among the samples that are served: an autoencoder's come from the fitted prior.
    served = [figure(metrics, "samples", name) or {} for name in ("standard", "fitted")]
    found = next((samples for samples in served if "neighbour_distance" in samples), None)
    if found is None:
        return None
    near, usual = found["neighbour_distance"], found["test_neighbour_distance"]
    sentence = f"Samples lie {near:.3g} from their nearest training picture, test pictures {usual:.3g}."
    share = found.get("near_training")
    is_fine: bool = 0 < usual * _COPY_RATIO <= near
    if share is not None:
        sentence += f" {share:.1%} of samples lie nearer than 99% of test pictures do."
        is_fine = is_fine and share <= _NEAR_SHARE
    if not usual:
        sentence += " Half of them lie in the training part too, so nothing tells whether samples are copies."
    elif not is_fine:
        sentence += " So near may mean that training pictures are given away: look at the nearest pairs."
    return Check("Copies of training pictures", is_fine, sentence)


def _likelihood(metrics: Mapping[str, Any]) -> Check | None:
    estimates = nll_estimates(metrics)
    most = estimates[-1] if estimates else None
    if most is None:
        return None
    if most.effective_draws is None or most.few_draws_share is None:  # as estimates were told before these were
        if most.mean_effective_draws is None:
            return None
        is_fine = most.mean_effective_draws >= _FEW_DRAWS
        sentence = f"nll at {most.draws:,} draws rests on {most.mean_effective_draws:,.1f} effective ones on average."
        return Check("Likelihood estimate", is_fine, sentence + ("" if is_fine else " It is too pessimistic."))
    sentence = (
        f"nll at {most.draws:,} draws rests on {most.effective_draws:,.0f} effective ones for a picture in the middle,"
        f" on fewer than 10 for {most.few_draws_share:.0%} of them."
    )
    is_fine = most.few_draws_share <= _FEW_DRAWS_SHARE
    if not is_fine:
        sentence += " For those it is too pessimistic."
    for fewer in estimates[-2:-1]:
        sentence += f" With {fewer.draws:,} draws it was {fewer.nats - most.nats:,.2f} nats higher."
    return Check("Likelihood estimate", is_fine, sentence)


def _training_at_its_end(config: RunConfig, history: Sequence[Mapping[str, Any]]) -> Check | None:
    if not history and config.origin is None:
        return None
    epoch, epochs = history[-1]["epoch"] if history else 0, config.training.epochs
    sentence = f"{epoch:,.4g} of {epochs:,} epochs."
    is_fine = epoch >= epochs
    return Check("Training", is_fine, sentence + ("" if is_fine else " The run has not come to its end."))


def _overfitting(config: RunConfig, metrics: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Check | None:
    if config.model.family == "autoencoder":  # which has no elbo that could fall
        return None
    kl = figure(metrics, "kl")
    lines = _of_one_objective(history)
    measured = [_objective(line, line["validation"]) for line in lines if line.get("validation")]
    validation = [value for value in measured if value is not None]
    if not validation or not kl:
        return None
    before = history[: len(history) - len(lines)]
    training = _of_the_last_epoch(lines, begin=before[-1]["epoch"] if before else 0.0)
    best, last = max(validation), validation[-1]
    name = {None: "bound", 1.0: "elbo"}.get(_weight(lines[-1]), "objective")
    sentence = (
        f"At its end, {name} is {training:,.2f} nats in training, {last:,.2f} in validation ({best:,.2f} at best)."
    )
    is_fine = max(best, training) - last <= _LOST_SHARE * kl
    return Check("Overfitting", is_fine, sentence)


def _of_one_objective(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines at the end of a log that raise what its last line does: others gave it up for something else."""
    lines: list[Mapping[str, Any]] = []
    for line in reversed(history):
        if lines and _weight(line) != _weight(lines[0]):
            break
        lines.insert(0, line)
    return lines


def _weight(line: Mapping[str, Any]) -> float | None:
    """Of the KL term; the bound of a last phase has none."""
    return float(line["beta"]) if line["bound"] is None else None


def _objective(line: Mapping[str, Any], found: Mapping[str, float]) -> float | None:
    """What a step of this line raises, of the terms that were found on other pictures; None if it was not measured."""
    beta = _weight(line)
    if beta is None:
        return found.get("bound")
    recon, kl = found["recon"], found["kl"]
    return -(recon + beta * kl)


def _of_the_last_epoch(lines: Sequence[Mapping[str, Any]], *, begin: float) -> float:
    """The objective, its mean over the last epoch of what lines say, of which the last one may be of a few pictures."""
    ends = [begin, *(float(line["epoch"]) for line in lines)]
    values = [_objective(line, line) or 0.0 for line in lines]
    shares = [(value, end - before) for value, before, end in zip(values, ends[:-1], ends[1:], strict=True)]
    last = [share for share, end in zip(shares, ends[1:], strict=True) if end > ends[-1] - 1]
    return sum(value * share for value, share in last) / sum(share for _, share in last)


def _test_pictures(config: RunConfig, metrics: Mapping[str, Any]) -> Check | None:
    images, name = figure(metrics, "protocol", "images"), figure(metrics, "protocol", "data")
    if images is None:
        return None
    origin = config.origin
    sentence = f"Figures are over {images:,} of {config.data.n_test:,} test pictures of {config.data.name}."
    of_the_run = figure(metrics, "protocol", "of_the_run")
    if name != config.data.name and not of_the_run:  # the very same may have been renamed
        sentence = f"Figures are over {images:,} pictures of {name}; the run learnt from {config.data.name}."
        return Check("Test pictures", False, sentence)
    if of_the_run is False:
        sentence += " They are not those that the run was started with: it may have been trained on some of them."
        return Check("Test pictures", False, sentence)
    if origin is not None and not origin.same_test:
        sentence += f" The weights of {origin.name}, with which the run began, may have learnt from some of them."
        return Check("Test pictures", False, sentence)
    return Check("Test pictures", images == config.data.n_test, sentence)
