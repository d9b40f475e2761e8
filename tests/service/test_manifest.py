"""Which numbers of a manifest may be wrong unseen, and that all others are refused."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.bundle import BadBundle
from service.manifest import DECODER, ENCODER, MANIFEST, PROBE
from tests.service.broken import edit_manifest
from tests.service.linear import fitted_prior, linear, open_linear, write_linear
from tests.service.refusals import REDUCED, started

NOTHING = {"max": 0.0, "mean": 0.0}


PARITY = {"mu": NOTHING, "logvar": NOTHING, "image": NOTHING, "shapes": [[4, 6, 5]], "pictures": 4}


FULL = {
    "likelihood": {"kind": "gaussian", "sigma": 0.1, "binarised_at": 128},
    "latent_scale": 0.18,
    "latent_shift": 0.5,
    "parity": PARITY | {"log_likelihood": NOTHING, "mu_in_sigma": NOTHING, "psnr_db": 50.0},
    "diagnostics": {
        "kl_per_dimension": [1.0, 2.0, 0.5, 0.0],
        "active_units": 1,
        "active_dimensions": [0],
        "mu_min": -1.0,
        "mu_max": 1.0,
        "aggregate": {"mean": [0.0], "variance": [1.0], "largest_correlation": 0.1, "mmd": 0.0, "mmd_spread": 0.1},
        "samples": {
            "standard": {"density": 1.0, "expected_density": 1.0, "coverage": 0.9, "expected_coverage": 0.9},
            "fitted": None,
        },
    },
    "metrics": {"elbo": -90.5},
}


INT8 = FULL | REDUCED | {
    "variant": {"encoder_speedup": 1.5, "decoder_speedup": 1.5, "batch_rows": 32, "size_ratio": 0.3, "machine": "a"}
}  # fmt: skip


# What may be wrong unseen, since no answer hangs on it: the graphs that answer are what was hashed. A tolerance is a
# report too where the graphs keep to it; `diagnostics` choose the order in which /traverse takes dimensions.
REPORTS = ("latent_scale", "latent_shift", "parity", "tolerance", "variant", "diagnostics", "metrics")


def numbers(plain: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The places of all numbers in a manifest."""
    if isinstance(plain, dict | list):
        for key, part in plain.items() if isinstance(plain, dict) else enumerate(plain):
            yield from numbers(part, (*place, key))
    elif isinstance(plain, int | float):
        yield place


def change(plain: Any, place: tuple[str | int, ...], by: int) -> None:
    *way, last = place
    for key in way:
        plain = plain[key]
    plain[last] += by


def full(folder: Path, kind: str) -> dict[str, Any]:
    """A bundle whose manifest has a number wherever it can, as plain JSON."""
    colour = linear((6, 5, 3), (4,), seed=0)
    if kind == "open":
        write_linear(folder, open_linear())
    else:
        write_linear(
            folder, colour, scorer=colour.scorer(), fitted=fitted_prior(), **(INT8 if kind == "int8" else FULL)
        )
    plain: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return plain


def fault(folder: Path) -> str | None:
    """The one sentence that the bundle is refused with, if it is."""
    try:
        started(folder)
    except BadBundle as error:
        return str(error)
    return None


@pytest.mark.parametrize("by", [1, -1])
@pytest.mark.parametrize("kind", ["fp32", "int8", "open"])
def test_a_manifest_with_one_wrong_number_is_refused_unless_the_number_is_a_report(
    tmp_path: Path, kind: str, by: int
) -> None:
    folder = tmp_path / kind
    sound = full(folder, kind)
    assert fault(folder) is None
    for place in numbers(sound):
        edit_manifest(folder, lambda plain, place=place: change(plain, place, by))
        found = fault(folder)
        (folder / MANIFEST).write_text(json.dumps(sound))
        assert place[0] in REPORTS if found is None else re.fullmatch(rf"{folder}/\S+: .+", found), place


@pytest.mark.parametrize("kind", ["fp32", "int8", "open"])
def test_the_wrong_numbers_are_all_of_a_manifest(tmp_path: Path, kind: str) -> None:
    places = {".".join(map(str, place)) for place in numbers(full(tmp_path / kind, kind))}
    size = {"image.default_side", "image.max_side"} if kind == "open" else {"image.height", "image.width"}
    files = {f"files.{name}.size_bytes" for name in (ENCODER, DECODER, PROBE)}
    assert places >= {"format", "image.stride", "image.channels", "latent_shape.0", "opset", *size, *files}


@pytest.mark.parametrize(("runs", "told"), [(0, "should have at least 1 item"), (65, "should have at most 64 items")])
def test_a_proof_of_nothing_or_of_endless_runs_is_refused(tmp_path: Path, runs: int, told: str) -> None:
    write_linear(tmp_path / "mine", linear())
    edit_manifest(tmp_path / "mine", lambda plain: plain["parity"].update(shapes=[[4, 6, 5]] * runs))
    assert re.fullmatch(
        rf"\S+/mine/manifest\.json: parity\.shapes is \[.*, tuple {told} .*", fault(tmp_path / "mine") or ""
    )
