"""What is said of a VAE's latent space, each with the number that would refute it, and whether it held."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model.study.classifier import Skill
from model.study.plan import AUTOENCODER, BETA_0, PLAIN, PLANE, Kind
from model.study.quantities import QUANTITIES, Numbers, standard_error_of

# Standard errors of measurement that two numbers of one seed lie apart, or are not told apart.
_APART = 2


@dataclass(frozen=True)
class Figure:
    """A number of one of the four models."""

    kind: Kind
    key: str
    of_plane: bool = False
    """Of the model with two latents, not of the one with the chosen number."""


@dataclass(frozen=True)
class Claim:
    """A sentence that holds if, for every seed, one figure is told to be below another."""

    sentence: str
    lower: Figure
    higher: Figure

    @property
    def number(self) -> str:
        """What decides it, in words."""
        return f"{_named(self.lower)} < {_named(self.higher)}"


@dataclass(frozen=True)
class Pair:
    """Both figures of a claim in one seed."""

    lower: float
    higher: float
    margin: float
    """Two standard errors of their difference, as far as these are known: nearer, they are not told apart."""

    @property
    def sign(self) -> int:
        """1 if the claim is true here, −1 if its reverse is, 0 if neither can be told."""
        difference = self.higher - self.lower
        return int(math.copysign(1, difference)) if abs(difference) > self.margin else 0


@dataclass(frozen=True)
class Verdict:
    """A claim beside what was measured, a pair for each seed."""

    claim: Claim
    pairs: Sequence[Pair]
    reason: str | None = None
    """Why it is not decided, and there are no pairs."""

    @property
    def held_in(self) -> int:
        """Seeds in which it held."""
        return sum(pair.sign == 1 for pair in self.pairs)

    @property
    def word(self) -> str:
        """What to say of it."""
        if not self.pairs:
            return "not decided"
        for sign, word in ((1, "held"), (-1, "reversed")):
            if all(pair.sign == sign for pair in self.pairs):
                return word
        return "not told apart"


def _than(kind: Kind, *, key: str, of_plane: bool = False) -> tuple[Figure, Figure]:
    """That a number of the VAE lies above that of another kind."""
    return Figure(kind, key, of_plane), Figure(PLAIN, key, of_plane)


# From the first sentence of what is said of VAEs to its last. Where a sentence compares with both kinds that lack the
# KL term, each is a claim of its own, and so are density and coverage: one is had at the price of the other.
CLAIMS = (
    Claim(
        "The decoder answers for the whole cloud: a draw from it moves the picture by less than reconstruction errs",
        Figure(PLAIN, "move_sigma"),
        Figure(PLAIN, "rmse"),
    ),
    Claim(
        "Training on clouds does it: a step of 5 % of the codes' spread moves the picture less than an autoencoder's",
        Figure(PLAIN, "move_spread"),
        Figure(AUTOENCODER, "move_spread"),
    ),
    Claim("Without the KL term clouds shrink, in units of the spread of all codes", *_than(BETA_0, key="width")),
    Claim(
        "The KL term keeps all clouds around one prior, where an autoencoder's codes lie anywhere",
        Figure(PLAIN, "mmd"),
        Figure(AUTOENCODER, "mmd"),
    ),
    Claim(
        "The KL term keeps all clouds around one prior, where clouds without it lie anywhere",
        Figure(PLAIN, "mmd"),
        Figure(BETA_0, "mmd"),
    ),
    Claim(
        "So codes reach more of the prior's plane than an autoencoder's",
        *_than(AUTOENCODER, key="plane_share", of_plane=True),
    ),
    Claim(
        "So codes reach more of the prior's plane than without the KL term",
        *_than(BETA_0, key="plane_share", of_plane=True),
    ),
    Claim("So samples are nearer to data than an autoencoder's", *_than(AUTOENCODER, key="standard_density")),
    Claim("So samples reach more kinds of data than an autoencoder's", *_than(AUTOENCODER, key="standard_coverage")),
    Claim("So samples are nearer to data than without the KL term", *_than(BETA_0, key="standard_density")),
    Claim("So samples reach more kinds of data than without the KL term", *_than(BETA_0, key="standard_coverage")),
    Claim(
        "What lies between two codes is nearer to data than with an autoencoder",
        *_than(AUTOENCODER, key="linear_density"),
    ),
    Claim(
        "What lies between two codes reaches more kinds of data than with an autoencoder",
        *_than(AUTOENCODER, key="linear_coverage"),
    ),
    Claim(
        "Paths between two pictures change more evenly than an autoencoder's, in pixels",
        Figure(PLAIN, "pixel_unevenness"),
        Figure(AUTOENCODER, "pixel_unevenness"),
    ),
    Claim(
        "Paths between two pictures change more evenly than an autoencoder's, in features",
        Figure(PLAIN, "feature_unevenness"),
        Figure(AUTOENCODER, "feature_unevenness"),
    ),
    Claim(
        "By design, not by luck: from a Gaussian fitted to its codes, an autoencoder's samples lie less near to data",
        Figure(AUTOENCODER, "fitted_density"),
        Figure(PLAIN, "standard_density"),
    ),
    Claim(
        "By design, not by luck: from a Gaussian fitted to its codes, an autoencoder's samples reach fewer kinds",
        Figure(AUTOENCODER, "fitted_coverage"),
        Figure(PLAIN, "standard_coverage"),
    ),
)


def decide(
    claim: Claim,
    *,
    measured: Mapping[Kind, Sequence[Numbers]],
    plane: Mapping[Kind, Sequence[Numbers]],
    skill: Skill | None,
) -> Verdict:
    """Whether a claim held; both mappings have the numbers of each kind, one after another for each seed.

    `skill` is that of the classifier, None where the data has no classes.
    """
    sides = [(figure, (plane if figure.of_plane else measured)[figure.kind]) for figure in (claim.lower, claim.higher)]
    reason = next((reason for figure, seeds in sides if (reason := _undecided(figure, seeds, skill))), None)
    if reason is not None:
        return Verdict(claim, [], reason)
    lower, higher = ([_measured(numbers, figure.key) for numbers in seeds] for figure, seeds in sides)
    return Verdict(
        claim,
        [
            Pair(below, above, margin=_APART * math.hypot(below_error, above_error))
            for (below, below_error), (above, above_error) in zip(lower, higher, strict=True)
        ],
    )


def _undecided(figure: Figure, seeds: Sequence[Numbers], skill: Skill | None) -> str | None:
    """Why a number cannot decide anything, in a sentence."""
    if any(numbers.get("active_units") == 0 for numbers in seeds):
        where = f" with {PLANE} latents" if figure.of_plane else ""
        return f"{figure.kind.title}{where} has no active unit: its codes tell nothing of a picture"
    if QUANTITIES[figure.key].in_features and skill is None:
        return "this data has no classes to train a classifier on"
    if QUANTITIES[figure.key].in_features and skill is not None and not skill.is_enough:
        return f"{skill}: too little to judge pictures in its features"
    if any(numbers.get(figure.key) is None for numbers in seeds):
        return "there are too few test pictures"
    return None


def _measured(numbers: Numbers, key: str) -> tuple[float, float]:
    """A number and its standard error, 0 where that is not known."""
    value, error = numbers[key], numbers.get(standard_error_of(key))
    assert value is not None, "asked before"  # noqa: S101
    return value, error or 0.0


def _named(figure: Figure) -> str:
    title = QUANTITIES[figure.key].title
    where = {"standard": "N(0, I)", "fitted": "fitted Gaussian", "linear": "midpoints"}.get(
        figure.key.partition("_")[0]
    )
    return f"{title}{f' ({where})' if where else ''} of {figure.kind.title}"
