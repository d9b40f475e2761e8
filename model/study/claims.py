"""What is said of a VAE's latent space, each with the number that would refute it, and whether it held."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model.study.plan import AUTOENCODER, BETA_0, PLAIN, Kind
from model.study.quantities import QUANTITIES, Numbers


@dataclass(frozen=True)
class Figure:
    """A number of one of the four models."""

    kind: Kind
    key: str
    of_plane: bool = False
    """Of the model with two latents, not of the one with the chosen number."""


@dataclass(frozen=True)
class Claim:
    """A sentence that holds if, for every seed, one figure is below another."""

    sentence: str
    lower: Figure
    higher: Figure

    @property
    def number(self) -> str:
        """What decides it, in words."""
        return f"{_named(self.lower)} < {_named(self.higher)}"


@dataclass(frozen=True)
class Verdict:
    """A claim beside what was measured.

    `pairs` holds (lower, higher) for each seed; it is empty where the data has no such numbers.
    """

    claim: Claim
    pairs: Sequence[tuple[float, float]]

    @property
    def held_in(self) -> int:
        """Seeds in which it held."""
        return sum(lower < higher for lower, higher in self.pairs)

    @property
    def word(self) -> str:
        """What to say of it."""
        if not self.pairs:
            return "not decided"
        return "held" if self.held_in == len(self.pairs) else "not held"


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
    claim: Claim, *, measured: Mapping[Kind, Sequence[Numbers]], plane: Mapping[Kind, Sequence[Numbers]]
) -> Verdict:
    """Whether a claim held; both mappings have the numbers of each kind, one after another for each seed."""

    def values(figure: Figure) -> list[float | None]:
        return [numbers.get(figure.key) for numbers in (plane if figure.of_plane else measured)[figure.kind]]

    pairs = [
        (lower, higher)
        for lower, higher in zip(values(claim.lower), values(claim.higher), strict=True)
        if lower is not None and higher is not None
    ]
    return Verdict(claim, pairs)


def _named(figure: Figure) -> str:
    title = QUANTITIES[figure.key].title
    where = {"standard": "N(0, I)", "fitted": "fitted Gaussian", "linear": "midpoints"}.get(
        figure.key.partition("_")[0]
    )
    return f"{title}{f' ({where})' if where else ''} of {figure.kind.title}"
