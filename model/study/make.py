"""A whole study in its folder: runs, numbers, pictures and a page; the same command goes on where it was stopped."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from model import checkpoint, lock, run
from model.errors import BadSetting
from model.files import write_whole
from model.machine import Machine, join
from model.report import sheets
from model.study import codes as latent
from model.study import page, runs
from model.study.claims import CLAIMS, decide
from model.study.page import Found
from model.study.plan import KINDS, PLANE, SIGMAS, Kind, Member, Plan
from model.vae import VAE

_STUDY = "study.json"
_PAGE = "index.html"


def make(folder: Path, plan: Plan, *, device: str) -> Found | int:
    """What the study has found, written into its folder; or the number of the signal that stopped it, all being saved.

    Raises:  BadSetting if the folder holds something else, or a study with other settings or pictures, or one that
             another process is making; NotANumber if a run stops being finite
    """
    _require_ours(folder, plan)
    with lock.held(folder, what="a study that another process is making"):
        return _made(folder, plan, machine=join(device, processes=1))


def _made(folder: Path, plan: Plan, *, machine: Machine) -> Found | int:
    stored, began = _stored(folder), time.monotonic()
    _write(folder, stored)
    try:
        with runs.Work(plan, folder=folder, device=machine.device.type) as work:
            stopped = work.train()
            if stopped is None:
                stopped = work.measure()
        if stopped is not None:
            return stopped
        _draw(folder, plan)
    finally:
        seconds = stored["seconds"] + time.monotonic() - began
        _write(folder, stored | {"seconds": round(seconds, 1)})
    facts = machine.facts()
    found = _found(folder, plan, seconds=seconds, machine=f"{facts['device']}, torch {facts['torch']}")
    write_whole(folder / _PAGE, page.render(plan, found).encode())
    _write(folder, _for_programs(plan, found))
    return found


def _require_ours(folder: Path, plan: Plan) -> None:
    """Nothing, if a study of this plan may be made, or go on, in a folder."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / _STUDY).exists())):
        raise BadSetting(f"{folder}: got a place with something else in it, expected a new folder or a study to go on")
    for member in plan.members:
        place = runs.run_folder(folder, member.name)
        if (place / "config.json").exists():
            run.require_same(place, member.config)


def _found(folder: Path, plan: Plan, *, seconds: float, machine: str) -> Found:
    def numbers(member: Member) -> dict[str, float | None]:
        return runs.read_numbers(folder, member.name)

    measured = {kind: [numbers(plan.measured(kind, seed)) for seed in plan.seeds] for kind in KINDS}
    plane = {kind: [numbers(plan.plane(kind, seed)) for seed in plan.seeds] for kind in KINDS}
    skill = runs.read_skill(folder, plan.dataset)
    return Found(
        measured=measured,
        plane=plane,
        swept={sigma: numbers(plan.swept(sigma)) for sigma in SIGMAS},
        reference={d: runs.read_reference(folder, d) for d in (PLANE, plan.settings.latent_dim)},
        verdicts=[decide(claim, measured=measured, plane=plane, skill=skill) for claim in CLAIMS],
        skill=skill,
        seconds=seconds,
        machine=machine,
    )


def _draw(folder: Path, plan: Plan) -> None:
    """Every picture of the page, and the strip."""
    # matplotlib takes long to import, and a study that is stopped draws nothing
    from model.report import plots as charts
    from model.study import pictures, plots

    measured = {kind: _model(folder, plan.measured(kind, 0)) for kind in KINDS}
    plane = {kind: _model(folder, plan.plane(kind, 0)) for kind in KINDS}
    dataset = plan.dataset
    plane_codes = {kind: latent.codes_of(vae, dataset.test) for kind, vae in plane.items()}
    draws = {
        kind: latent.codes_of(vae, dataset.test).draw(torch.Generator().manual_seed(0))
        for kind, vae in measured.items()
    }
    kl = {kind: _metrics(folder, plan.measured(kind, 0))["kl_per_dimension"] for kind in KINDS}
    drawn = {
        "latent_plane": charts.to_png(plots.latent_plane(plane_codes, dataset.test_labels)),
        "clouds": charts.to_png(plots.clouds(plane_codes, dataset.test_labels)),
        "plane_prior": charts.to_png(plots.decoded_plane(plane, None)),
        "plane_codes": charts.to_png(plots.decoded_plane(plane, plane_codes)),
        "interpolations": sheets.to_png(pictures.interpolations(measured, dataset)),
        "samples": sheets.to_png(pictures.samples(measured)),
        "samples_fitted": sheets.to_png(pictures.fitted_samples(measured, dataset)),
        "aggregate": charts.to_png(plots.aggregate(draws)),
        "kl_per_latent": charts.to_png(plots.kl_per_latent({kind: of for kind, of in kl.items() if of})),
        "strip": sheets.to_png(pictures.strip(measured, dataset)),
    }
    for name, content in drawn.items():
        write_whole(folder / "pictures" / f"{name}.png", content)


def _model(folder: Path, member: Member) -> VAE:
    return checkpoint.read(runs.run_folder(folder, member.name)).vae


def _metrics(folder: Path, member: Member) -> Mapping[str, Any]:
    metrics = checkpoint.read(runs.run_folder(folder, member.name)).metrics
    assert metrics is not None, "a run that has ended has been evaluated"  # noqa: S101
    return metrics


def _for_programs(plan: Plan, found: Found) -> dict[str, Any]:
    """All that the page says, for those who read no pages."""

    def by_name(numbers: Mapping[Kind, Any]) -> dict[str, Any]:
        return {kind.name: of for kind, of in numbers.items()}

    return {
        "seconds": round(found.seconds, 1),
        "machine": found.machine,
        "data": plan.dataset.name,
        "settings": dataclasses.asdict(plan.settings),
        "classifier": None if found.skill is None else dataclasses.asdict(found.skill),
        "measured": by_name(found.measured),
        "plane": by_name(found.plane),
        "swept": {f"{sigma:g}": of for sigma, of in found.swept.items()},
        "reference": found.reference,
        "claims": [
            {
                "claim": verdict.claim.sentence,
                "decided_by": verdict.claim.number,
                "lower": [pair.lower for pair in verdict.pairs],
                "higher": [pair.higher for pair in verdict.pairs],
                "two_standard_errors": [pair.margin for pair in verdict.pairs],
                "held_in": verdict.held_in,
                "verdict": verdict.word,
                "reason": verdict.reason,
            }
            for verdict in found.verdicts
        ],
    }


def _stored(folder: Path) -> dict[str, Any]:
    """What earlier calls of the command wrote: the seconds that they took, and all that the last finished one found."""
    path = folder / _STUDY
    if not path.exists():
        return {"seconds": 0.0}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadSetting(f"{path}: got something else ({error}), expected what a study wrote there") from error
    if not isinstance(found, dict) or not isinstance(found.get("seconds"), int | float):
        raise BadSetting(f"{path}: got no seconds in it, expected what a study wrote there")
    return found


def _write(folder: Path, content: Mapping[str, Any]) -> None:
    write_whole(folder / _STUDY, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
