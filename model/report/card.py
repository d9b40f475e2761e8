"""The model card: what a run is, how good it is and what to look at, as a page that a person decides by."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from model.checkpoint import RunConfig
from model.files import write_whole
from model.report.checks import Check, checks, figure, nll_estimates

_QUESTIONS = (
    "- [ ] The reconstructions are good enough for what the latents will be used for.",
    "- [ ] The samples may be shown to whoever will call the service.",
    "- [ ] The licence of the data, and the people in it if there are any, allow that a model of it is served.",
)
# A bar in a cell would end it.
_BAR = "\\|"
# Title of a picture, and what to look for in it.
_PICTURES = {
    "reconstructions": (
        "Reconstructions",
        "Does each output show what its input shows? What is lost here is lost to whoever works with the latents.",
    ),
    "samples": (
        "Prior samples",
        "What /sample gives. Count those that could pass for data, and look for kinds of pictures that never come.",
    ),
    "samples_fitted": (
        "Samples of the fitted prior",
        "What /sample gives with prior=fitted. It should look more like data than samples from N(0, I) do.",
    ),
    "neighbours": (
        "Nearest training pictures",
        "Samples that repeat a training picture in its details have learnt it by heart; likeness of kind is no harm.",
    ),
    "interpolations": (
        "Interpolations",
        "What /interpolate gives. Changes should be steady, and what lies between two pictures a picture itself.",
    ),
    "traversals": (
        "Traversals",
        "What each latent does. Rows in which nothing moves are idle; ends that fall apart lie where no data was.",
    ),
    "kl_spectrum": (
        "KL per latent",
        "How much each latent tells about a picture, at most. A long flat end says that fewer latents would do.",
    ),
    "posterior": (
        "Latent space",
        "Pictures should fill the circles and not lie outside them; holes are places from which samples look wrong.",
    ),
    "curves": (
        "Training curves",
        "Is validation still improving at the end (train longer), or falling behind training (overfitting)?",
    ),
}


def write(
    folder: Path,
    config: RunConfig,
    *,
    metrics: Mapping[str, Any],
    pictures: Sequence[str],
    n_weights: int,
    history: Sequence[Mapping[str, Any]] = (),
    machine: Mapping[str, Any] | None = None,
) -> None:
    """`card.md` in a run's folder, beside the pictures that it shows."""
    text = render(
        folder.resolve().name,
        config,
        metrics=metrics,
        pictures=pictures,
        n_weights=n_weights,
        history=history,
        machine=machine or {},
    )
    write_whole(folder / "card.md", text.encode(errors="backslashreplace"))  # names of files may be any bytes


def render(
    name: str,
    config: RunConfig,
    *,
    metrics: Mapping[str, Any],
    pictures: Sequence[str],
    n_weights: int,
    history: Sequence[Mapping[str, Any]],
    machine: Mapping[str, Any],
) -> str:
    """The card as Markdown; figures that are not at hand are left out.

    `pictures` are names as `model.report.pictures.write_all` gives them, `history` the lines of metrics.jsonl,
    `machine` what `model.checkpoint.machine_facts` gives.
    """
    parts = [
        [f"# {name}", _what(config)],
        ["## Before you serve it", *_before_serving(checks(config, metrics, history=history))],
        ["## Figures", *_figures(config, metrics)],
        ["## Pictures", *(_picture(picture) for picture in pictures)] if pictures else [],
        ["## Data", _data(config)],
        ["## Model", _table(("setting", "value"), _model(config, n_weights=n_weights))],
        ["## Training", *_training(config, history=history, machine=machine)],
    ]
    return "\n\n".join(block for part in parts for block in part if block) + "\n"


def _what(config: RunConfig) -> str:
    model = config.model
    kind = "A variational autoencoder" if model.family == "vae" else "An autoencoder"
    colours = {1: "grey", 3: "colour"}.get(model.channels, f"{model.channels}-channel")
    origin = config.origin
    before = (
        f" It started from the weights of {origin.name}; what those had learnt from, its card says." if origin else ""
    )
    return (
        f"{kind} of {model.height}×{model.width} {colours} pictures with {model.latent_dim:,} latents,"
        f" trained on {config.data.n_train:,} pictures of {config.data.name}.{before}"
    )


def _before_serving(found: Sequence[Check]) -> list[str]:
    looks = sum(not check.is_fine for check in found)
    told = {0: "The figures raise no doubt.", 1: "One figure asks for a closer look."}
    rows = [("fine" if check.is_fine else "**look**", check.name, check.found) for check in found]
    return [
        told.get(looks, f"{looks} figures ask for a closer look.") if found else "",
        _table(("", "what", "found"), rows) if rows else "",
        "What no figure can say:",
        "\n".join(_QUESTIONS),
    ]


def _figures(config: RunConfig, metrics: Mapping[str, Any]) -> list[str]:
    return [
        _table(("figure", "value", "meaning"), [*_bounds(config, metrics), *_latents(metrics), *_likenesses(metrics)]),
        _protocol("Over test pictures", figure(metrics, "protocol")),
        _protocol("Nll", figure(metrics, "nll", "protocol")),
        *_samples(metrics),
    ]


Rows = list[tuple[str, ...]]


def _bounds(config: RunConfig, metrics: Mapping[str, Any]) -> Rows:
    is_vae = config.model.family == "vae"
    rows: Rows = [
        ("elbo", _nats(metrics.get("elbo")) if is_vae else "", "−(recon + kl); higher is better"),
        ("recon", _nats(metrics.get("recon")), "−log p(x given z); lower is better"),
        ("kl", _nats(metrics.get("kl")) if is_vae else "", "what z tells about a picture, at most"),
    ]
    for estimate in nll_estimates(metrics):
        error = f" ± {estimate.standard_error:.2f}" if estimate.standard_error is not None else ""
        meaning = "−log p(x) by importance sampling, ± standard error of the mean; lower is better"
        rows.append((f"nll, {estimate.draws:,} draws", _nats(estimate.nats) + error, meaning))
    rows.append(("bits/dim", _number(metrics.get("bpd"), 3), "−elbo in bits for each number in a picture"))
    return [row for row in rows if row[1]]


def _latents(metrics: Mapping[str, Any]) -> Rows:
    aggregate = figure(metrics, "aggregate") or {}
    active, kl = metrics.get("active_units"), metrics.get("kl_per_dimension")
    share, spread = aggregate.get("logvar_at_clamp"), aggregate.get("mmd_spread")
    mmd = _number(aggregate.get("mmd"), 4) + ("" if spread is None else f" (spread {spread:.4f})")
    counted = f"{active:,} of {len(kl):,}" if kl and active is not None else ""  # codes of an autoencoder have no scale
    rows = [
        ("active units", counted, "latents whose mu varies over pictures"),
        ("largest correlation", _number(aggregate.get("largest_correlation"), 3), "of two latents; the prior has 0"),
        ("MMD to the prior", mmd, "squared distance of all latents to N(0, I), and how far equal ones would be spread"),
        ("logvar at its clamp", "" if share is None else f"{share:.2%}", "share of log variances"),
    ]
    return [row for row in rows if row[1]]


def _likenesses(metrics: Mapping[str, Any]) -> Rows:
    psnr = metrics.get("psnr")
    rows = [
        ("psnr", "" if psnr is None else f"{psnr:.2f} dB", "of reconstructions; higher is better"),
        ("ssim", _number(metrics.get("ssim"), 3), "of reconstructions; 1 is equal"),
        ("mse", _number(metrics.get("mse"), 5), "of reconstructions, black to white is 1; lower is better"),
    ]
    return [row for row in rows if row[1]]


def _samples(metrics: Mapping[str, Any]) -> list[str]:
    """Figures of samples, a column for each prior that was measured."""
    names = [name for name in ("standard", "fitted", "rejected") if figure(metrics, "samples", name)]
    meanings = {
        "density": "how far samples lie among test pictures; real pictures have 1",
        "coverage": "share of test pictures with a sample near them",
        "expected_coverage": "the same, were the samples real pictures",
        "neighbour_distance": "of a sample to its nearest training picture, median",
        "test_neighbour_distance": "of a test picture to its nearest training picture, median",
        "near_training": "share of samples nearer to a training picture than 99 % of test pictures are",
    }
    rows = []
    for key, meaning in meanings.items():
        values = [_number(figure(metrics, "samples", name, key), 3) for name in names]
        if any(values):
            rows.append((key.replace("_", " "), *values, meaning))
    if not rows:
        return []
    titles = {"standard": "N(0, I)", "fitted": "fitted prior", "rejected": "fitted prior, not kept"}
    head = ("samples", *(titles[name] for name in names), "meaning")
    return [_table(head, rows), _protocol("Samples", figure(metrics, "samples", "protocol"))]


def _picture(name: str) -> str:
    title, sentence = _PICTURES[name]
    return f"### {title}\n\n{sentence}\n\n![{title}](pictures/{name}.png)"


def _data(config: RunConfig) -> str:
    data = dataclasses.asdict(config.data)
    counts = {"n_train": "training pictures", "n_validation": "validation pictures", "n_test": "test pictures"}
    rows = [
        ("name", data["name"]),
        *((text, f"{data[key]:,}") for key, text in counts.items() if data.get(key) is not None),
        ("sha256", f"`{data['sha256'][:12]}…`, over all pictures"),
    ]
    return _table(("data", ""), rows)


def _model(config: RunConfig, *, n_weights: int) -> Rows:
    model = config.model
    # The first row says these three.
    shown = {k: v for k, v in dataclasses.asdict(model).items() if k not in ("height", "width", "channels")}
    low, high = model.logvar_range
    return [
        ("pictures", f"{model.height}×{model.width}×{model.channels}"),
        *_settings(shown | {"logvar_range": f"{low:g} to {high:g}"}),
        ("weights", f"{n_weights:,}"),
    ]


def _training(config: RunConfig, *, history: Sequence[Mapping[str, Any]], machine: Mapping[str, Any]) -> Iterator[str]:
    if history:
        last = history[-1]
        rates = sorted(record["images_per_s"] for record in history)
        yield (
            f"{last['step']:,} steps in {_duration(last['seconds'])},"
            f" {rates[len(rates) // 2]:,.0f} images/s (median over the log)."
        )
    yield _protocol("Machine", machine)
    yield _table(("setting", "value"), _settings(dataclasses.asdict(config.training)))


def _settings(settings: Mapping[str, Any]) -> Rows:
    return [(name.replace("_", " "), _text(value)) for name, value in settings.items() if value is not None]


def _protocol(title: str, facts: Mapping[str, Any] | None) -> str:
    """One line of how figures came about; nothing where nothing is known."""
    # Hashes tell programs what belongs together, and a person nothing.
    told = {name: value for name, value in (facts or {}).items() if value is not None and "sha256" not in name}
    known = [f"{name.replace('_', ' ')} {_text(value)}" for name, value in told.items()]
    return f"{title}: {' · '.join(known)}." if known else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', _BAR) for cell in line)} |" for line in lines)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return ", ".join(map(_text, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def _nats(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f} nats"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 2:
        return f"{hours:.1f} hours"
    return f"{minutes:.1f} minutes" if minutes >= 2 else f"{seconds:.0f} seconds"
