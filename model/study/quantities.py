"""The numbers of a study: what each is called, what it means, and how it is written."""

from collections.abc import Mapping
from dataclasses import dataclass

# None: the model, or the data, has no such number.
Numbers = Mapping[str, float | None]


@dataclass(frozen=True)
class Quantity:
    """One row of a table."""

    key: str
    title: str
    meaning: str
    """With its unit."""
    digits: int = 3
    in_features: bool = False
    """Whether it is only as good as the classifier whose features it is taken in."""


def standard_error_of(key: str) -> str:
    """Under what a quantity's standard error of measurement stands beside it, where that is known."""
    return f"{key}_standard_error"


@dataclass(frozen=True)
class Group:
    """Rows that answer one question."""

    title: str
    note: str
    """What was compared, and what the reference column holds."""
    quantities: tuple[Quantity, ...]


def _realism(prefix: str) -> tuple[Quantity, ...]:
    meanings = {
        "density": "how far they lie among test pictures; real pictures have about 1, blurred ones may have more",
        "coverage": "share of test pictures with one of them near",
        "confidence": "probability of the class that the classifier takes each for",
    }
    return tuple(Quantity(f"{prefix}_{name}", name, meaning, in_features=True) for name, meaning in meanings.items())


GROUPS = (
    Group(
        "Reconstruction",
        "",
        (
            Quantity("rmse", "error", "root of the mean squared error of decode(mu), black to white is 1", 4),
            Quantity("recon", "recon", "−log p(x given z), nats per picture; a density, so it may be negative", 1),
        ),
    ),
    Group(
        "Clouds",
        "an autoencoder has none",
        (
            Quantity("kl", "KL", "to N(0, I), nats per picture", 2),
            Quantity("active_units", "active units", "latents whose mu has a variance above 0.01", 0),
            Quantity("sigma", "sigma", "of the posterior, mean over pictures and latents", 4),
            Quantity("width", "sigma over spread", "the same in units of the spread of all codes", 4),
        ),
    ),
    Group(
        "All clouds together",
        "reference: as many draws from N(0, I), and for labels the pixels of the pictures themselves",
        (
            Quantity("mmd", "MMD", "squared maximum mean discrepancy to N(0, I), 2,000 draws at most", 4),
            Quantity("moments", "moment distance", "Wasserstein-2 distance of mean and covariance to those of N(0, I)"),
            Quantity("plane_share", "plane covered", "share of a 20×20 grid of the prior's quantiles that codes hit"),
            Quantity(
                "plane_overlap",
                "plane shared",
                "overlap with the prior on that grid: sum over cells of the share of codes in it, 1/400 at most",
            ),
            Quantity("label_agreement", "neighbours agree", "share of codes whose nearest other one has their label"),
        ),
    ),
    Group(
        "Samples from N(0, I)",
        "in the classifier's features; reference: real pictures",
        _realism("standard"),
    ),
    Group(
        "Samples from a Gaussian fitted to the codes",
        "in the classifier's features; reference: real pictures",
        _realism("fitted"),
    ),
    Group(
        "Midpoints of straight lines between two codes",
        "in the classifier's features; reference: the two pictures laid over each other",
        _realism("linear"),
    ),
    Group("Midpoints of arcs between two codes", "in the classifier's features", _realism("spherical")),
    Group(
        "Straight lines between two codes, in 20 steps",
        "reference: a cross-fade of the two pictures",
        (
            Quantity("pixel_unevenness", "unevenness, pixels", "longest step over mean step; 1 is even", 2),
            Quantity("pixel_length", "length, pixels", "sum of the steps, black to white is 1", 2),
            *(
                Quantity(f"feature_{name}", f"{name}, features", "the same in the classifier's features", 2, True)
                for name in ("unevenness", "length")
            ),
        ),
    ),
    Group(
        "A small step of z",
        "steps by sigma differ in size, those of 5 % compare; beta 0 is the control: it has clouds and no KL term",
        (
            Quantity(
                "move_sigma",
                "moved by sigma",
                "root of the mean squared change of the decoded picture when z is drawn from its cloud, black to white"
                " is 1",
                4,
            ),
            Quantity("move_spread", "moved by 5 %", "the same for a normal step of 5 % of the codes' spread", 4),
        ),
    ),
)
QUANTITIES = {quantity.key: quantity for group in GROUPS for quantity in group.quantities}
