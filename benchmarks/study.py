"""The tables of docs/latent-space.md, of a study that has come to its end.

Run as `python -m benchmarks.study STUDY`, after `vae-train study --data PATH --out STUDY`.
"""

import json
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from model.study.page import mean_and_spread
from model.study.plan import KINDS
from model.study.quantities import QUANTITIES

# The rows of the second table: the number, and what it is called there; those of a plane are of the models with two
# latents.
ROWS = {
    "rmse": "error",
    "kl": "KL",
    "width": "sigma over spread",
    "mmd": "MMD",
    "moments": "moment distance",
    "label_agreement": "neighbours agree",
    "standard_density": "samples from N(0, I): density",
    "standard_coverage": "… coverage",
    "fitted_density": "samples from a fitted Gaussian: density",
    "fitted_coverage": "… coverage",
    "linear_density": "midpoints of lines: density",
    "linear_coverage": "… coverage",
    "spherical_density": "midpoints of arcs: density",
    "spherical_coverage": "… coverage",
    "pixel_unevenness": "unevenness of lines, pixels",
    "feature_unevenness": "… features",
    "move_sigma": "moved by sigma",
    "move_spread": "moved by 5 % of the spread",
    "plane_share": "plane covered, 2 latents",
    "plane_overlap": "plane shared, 2 latents",
}
_OF_PLANE = ("plane_share", "plane_overlap")
_KEPT = ("data", "settings", "seconds", "machine", "classifier", "claims", "measured", "plane", "swept", "reference")


def main() -> None:
    """Print both tables, keep the figures as JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path, help="the folder of a study that has come to its end")
    folder = parser.parse_args().study
    found = read(folder)
    if found is None:
        parser.error(f"{folder}: got no study that has come to its end, expected one of `vae-train study`")
    print(f"{found['data']}, {found['seconds'] / 60:.1f} minutes on {found['machine']}; {told(found)}\n")
    print(claims(found) + "\n\n" + numbers(found) + "\n")
    # The machine of the study, and not the one that reads it.
    kept = {name: found[name] for name in _KEPT if name != "machine"}
    print(results.keep("study", {"studied_on": found["machine"], **kept}))


def read(folder: Path) -> dict[str, Any] | None:
    """What a study found, or None if it has found nothing yet."""
    path = folder / "study.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found if "claims" in found else None


def told(found: Mapping[str, Any]) -> str:
    """How many claims there are of each verdict, and how good the classifier was."""
    verdicts = [claim["verdict"] for claim in found["claims"]]
    counts = ", ".join(f"{verdicts.count(word)} {word}" for word in dict.fromkeys(verdicts))
    skill = found["classifier"]
    known = (
        "no classifier"
        if skill is None
        else f"classifier {skill['accuracy']:.1%}, the largest class {skill['largest_share']:.1%}"
    )
    return f"{known}; of {len(verdicts)} claims {counts}"


def claims(found: Mapping[str, Any]) -> str:
    """Each claim with both its numbers by seed, and whether it held."""
    seeds = found["settings"]["seeds"]
    which = "seed 0" if seeds == 1 else f"seeds {', '.join(map(str, range(seeds)))}"
    rows = []
    for claim in found["claims"]:
        pairs = zip(claim["lower"], claim["higher"], strict=True)
        by_seed = ", ".join(f"{lower:.3g} : {higher:.3g}" for lower, higher in pairs)
        verdict = claim["verdict"] + (f" ({claim['held_in']} of {seeds})" if seeds > 1 and by_seed else "")
        rows.append((claim["claim"], by_seed or "–", verdict))
    return _table(("claim", f"lower : higher, for {which}", ""), rows)


def numbers(found: Mapping[str, Any]) -> str:
    """Means over seeds of the four models, ± the standard deviation, beside the reference."""
    rows = []
    for key, title in ROWS.items():
        digits = QUANTITIES[key].digits
        of, d = ("plane", 2) if key in _OF_PLANE else ("measured", found["settings"]["latent_dim"])
        values = [[numbers.get(key) for numbers in found[of][kind.name]] for kind in KINDS]
        cells = [mean_and_spread(of_seeds, digits=digits) for of_seeds in values]
        reference = found["reference"][str(d)].get(key)
        rows.append((title, *cells, "" if reference is None else mean_and_spread([reference], digits=digits)))
    return _table(("", *(kind.title for kind in KINDS), "reference"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As it stands in the document, whose cells are too long to be aligned."""
    first, *others = (f"| {' | '.join(cells)} |" for cells in (head, *rows))
    return "\n".join((first, f"|{'---|' * len(head)}", *others))


if __name__ == "__main__":
    main()
