"""A study as one page that opens from disk: what was claimed, whether it held, all numbers, and pictures to look at."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from model.aggregate import MMD_ROWS
from model.study.claims import CLAIMS, Verdict
from model.study.classifier import FEATURES, Skill
from model.study.numbers import CODES, MOVED, PATHS, REALISTIC
from model.study.plan import AUTOENCODER, KINDS, PLAIN, PLANE, SIGMA, SIGMAS, Kind, Plan
from model.study.quantities import GROUPS, QUANTITIES, Numbers, Quantity, standard_error_of

# Verdicts, in the order in which they are counted.
WORDS = ("held", "reversed", "not told apart", "not decided")


@dataclass(frozen=True)
class Picture:
    """A picture of the page: the name of its file, a title, and how to read it."""

    name: str
    title: str
    sentence: str


PICTURES = (
    Picture(
        "latent_plane",
        "The latent plane",
        "Each dot is a test picture at its code: look for holes and far-off arms, from which a draw of N(0, I)"
        " would be decoded into something the decoder was never asked for.",
    ),
    Picture(
        "clouds",
        "Clouds, before and after KL",
        "Clouds that touch leave no gap between pictures; clouds that have shrunk to points leave the decoder free"
        " to do anything between them.",
    ),
    Picture(
        "plane_prior",
        "The decoded plane, where N(0, I) lies",
        "Every tile stands for as many draws of /sample as any other: count those that could pass for data, and look"
        " for sudden changes between neighbours.",
    ),
    Picture(
        "plane_codes",
        "The decoded plane, where the codes lie",
        "The same over each model's own square: what a model can draw if one asks where its codes are.",
    ),
    Picture(
        "interpolations",
        "Interpolations",
        "Follow a row from left to right: changes should be steady and every picture on the way one of its own,"
        " not two pictures laid over each other.",
    ),
    Picture(
        "samples",
        "Samples from N(0, I)",
        "What each model gives for the same draws: an autoencoder was never asked to fill N(0, I).",
    ),
    Picture(
        "samples_fitted",
        "Samples from a fitted Gaussian",
        "What each gives when it is asked where its codes are: what is better here than above was a matter of the"
        " prior and not of the decoder.",
    ),
    Picture(
        "aggregate",
        "All clouds together, against N(0, I)",
        "Lines that follow the dashed one are latents whose clouds together fill the prior; the lower row shows"
        " whether codes lie at the distance from 0 at which N(0, I) has its mass.",
    ),
    Picture(
        "kl_per_latent",
        "KL per latent",
        "How much each latent tells about a picture: a bar near 0 is a latent that the model leaves to the prior.",
    ),
)


@dataclass(frozen=True)
class Found:
    """All that a study has found.

    `measured` and `plane` hold the numbers of each kind, one after another for each seed.
    """

    measured: Mapping[Kind, Sequence[Numbers]]
    plane: Mapping[Kind, Sequence[Numbers]]
    swept: Mapping[float, Numbers]
    reference: Mapping[int, Numbers]
    """By number of latents: what real pictures have, or N(0, I) itself."""
    verdicts: Sequence[Verdict]
    skill: Skill | None
    """Of the classifier; None where the data has no classes."""
    seconds: float
    """That the study has taken so far."""
    machine: str


def render(plan: Plan, found: Found) -> str:
    """The page as HTML; pictures lie beside it in `pictures/`."""
    name = escape(plan.dataset.name)
    parts = [
        f"<h1>Why the latent space of {name} is continuous, or is not</h1>",
        _intro(plan),
        "<h2>What was claimed, and what held</h2>",
        _claims(plan, found),
        "<h2>Pictures</h2>",
        _shown(plan),
        *map(_picture, PICTURES),
        f"<h2>Numbers: {plan.settings.latent_dim} latents</h2>",
        _protocol(plan, found),
        _numbers(found.measured, reference=found.reference[plan.settings.latent_dim]),
        f"<h2>Numbers: {PLANE} latents</h2>",
        f"<p>Trained on {plan.sketch.train.shape[0]:,} pictures.</p>",
        _numbers(found.plane, reference=found.reference[PLANE]),
        "<h2>The balance of the two terms: sigma</h2>",
        _sweep(plan, found),
        "<h2>How it was made</h2>",
        _made(plan, found),
    ]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: why the latent space is continuous</title>\n<style>{_CSS}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def mean_and_spread(values: Iterable[float | None], *, digits: int, error: float | None = None) -> str:
    """Mean over seeds ± standard deviation where there are several, else ± the error if it is known; a dash where there
    is nothing.
    """
    there = [value for value in values if value is not None]
    if not there:
        return "–"
    spread = statistics.stdev(there) if len(there) > 1 else error
    shown = f"{statistics.fmean(there):,.{digits}f}" + ("" if spread is None else f" ± {spread:,.{digits}f}")
    return shown.replace("-", "−")


def _intro(plan: Plan) -> str:
    member = plan.measured(PLAIN, 0)
    training = member.config.training
    return (
        "<p>A variational autoencoder gives each picture a Gaussian cloud instead of a point; the decoder has to answer"
        " for the whole cloud, and the KL term keeps all clouds around one prior. An autoencoder has neither. Here four"
        f" models learn from the same pictures, with the same network"
        f" (<code>{escape(member.config.model.preset)}</code>), seed, order of pictures and"
        f" {training.epochs} epochs (the seed pairs the order of pictures; autoencoder and VAEs do not begin with the"
        " same weights, as an encoder without clouds draws fewer numbers):</p>"
        "<ol><li>an <b>autoencoder</b>, which minimises ‖x − x̂‖²;</li>"
        "<li>a <b>VAE with beta 0</b>: clouds, but no KL term;</li>"
        "<li>the <b>VAE</b>, E[−log p(x|z)] + KL;</li>"
        "<li>a <b>VAE with beta 4</b>: four times the KL term.</li></ol>"
        f"<p>All four have the same Gaussian likelihood with sigma {SIGMA:g}, where 1 is black to white.</p>"
    )


def _claims(plan: Plan, found: Found) -> str:
    seeds = plan.settings.seeds
    over = f"in each of {seeds} seeds" if seeds > 1 else "for the one seed"
    rows = []
    for verdict in found.verdicts:
        digits = QUANTITIES[verdict.claim.lower.key].digits
        lower = mean_and_spread([pair.lower for pair in verdict.pairs], digits=digits)
        higher = mean_and_spread([pair.higher for pair in verdict.pairs], digits=digits)
        margin = max((pair.margin for pair in verdict.pairs), default=0.0)
        word = verdict.word + (f" ({verdict.held_in} of {seeds})" if seeds > 1 and verdict.pairs else "")
        rows.append(
            f"<tr><td>{escape(verdict.claim.sentence)}</td><td>{escape(verdict.claim.number)}</td>"
            f'<td class="n">{lower} : {higher}</td><td class="n">{f"{margin:.{digits}f}" if margin else "–"}</td>'
            f'<td class="{verdict.word.replace(" ", "-")}">{word}</td></tr>'
        )
    words = [verdict.word for verdict in found.verdicts]
    counts = ", ".join(f"{words.count(word)} {word}" for word in WORDS if word in words)
    reasons = dict.fromkeys(verdict.reason for verdict in found.verdicts if verdict.reason)
    return (
        "<p>Each sentence was written down before anything was measured, with the inequality that decides it; how three"
        " of the numbers are estimated (moved by, density and coverage of midpoints) was corrected on 2026-11-30, after"
        f" a first result. A claim <b>held</b> if its inequality is true {over}, and is <b>reversed</b> if the opposite"
        " is; in a seed in which the two numbers differ by less than two standard errors of measurement, neither is."
        f" Whatever is left is <b>not told apart</b>. Of {len(words)} claims: <b>{counts}</b>.</p>"
        f"{''.join(f'<p>Not decided: {escape(reason)}.</p>' for reason in reasons)}"
        "<table><tr><th>claim</th><th>decided by</th>"
        f'<th class="n">measured</th><th class="n">two standard errors</th><th></th></tr>{"".join(rows)}</table>'
        f"{_caveats(plan, found)}"
    )


def _caveats(plan: Plan, found: Found) -> str:
    """What to know before one of these words is passed on."""
    chance = (
        "Errors of measurement are those of pictures, pairs and noise; how one training or another falls out is not in"
        " them. Where two models do not differ, chance makes a claim true in every seed up to once in"
        f" {2**plan.settings.seeds}, and its reverse as often: of {len(CLAIMS)} claims, some may be such."
    )
    density = (
        "Density counts how often data is near, so blurred pictures that all lie in one dense place have a high one and"
        " a low coverage: read both."
    )
    moved = (
        "How far a draw moves the picture is nearly fixed: where training has come to its end, by sigma ·"
        " √(beta · Σ (1 − σ²) / D), D being the numbers in a picture, sigma that of the likelihood and σ that of each"
        " latent's cloud. The first claim checks that, and little more."
    )
    points = [chance, density, moved, *_fitted_beside_fitted(found)]
    return f"<ul>{''.join(f'<li>{escape(point)}</li>' for point in points)}</ul>"


def _fitted_beside_fitted(found: Found) -> list[str]:
    """What the last claims leave open; nothing where there is no classifier."""
    beside = []
    for quantity in (QUANTITIES["fitted_density"], QUANTITIES["fitted_coverage"]):
        if found.measured[PLAIN][0].get(quantity.key) is not None:
            both = (_cell(found.measured[kind], quantity) for kind in (AUTOENCODER, PLAIN))
            beside.append(f"{quantity.title} {' : '.join(both)}")
    sentence = (
        "The claims “by design, not by luck” give a fitted Gaussian to the autoencoder and none to the VAE. Fitted"
        f" beside fitted, autoencoder : VAE, it is {', '.join(beside)}."
    )
    return [sentence] if beside else []


def _shown(plan: Plan) -> str:
    return (
        f"<p>All of seed 0. Planes and clouds are those of the models with {PLANE} latents, all else is of those with"
        f" {plan.settings.latent_dim}.</p>"
    )


def _picture(picture: Picture) -> str:
    title, file = escape(picture.title), f"pictures/{picture.name}.png"
    return (
        f'<figure id="{picture.name}"><h3>{title}</h3><p>{escape(picture.sentence)}</p>'
        f'<a href="{file}"><img src="{file}" alt="{title}"></a></figure>'
    )


def _protocol(plan: Plan, found: Found) -> str:
    dataset = plan.dataset
    n = len(dataset.test)
    over = "the standard deviation over seeds" if plan.settings.seeds > 1 else "the standard error, where it is known"
    text = (
        f"Trained on {len(dataset.train):,} pictures, measured on {n:,} test pictures, ± {over}. Of these,"
        f" {min(CODES, n):,} are looked at for neighbours and planes, {min(MMD_ROWS, n):,} for MMD, {min(MOVED, n):,}"
        f" for small steps; lines are {min(PATHS, n):,}, and samples and midpoints {min(REALISTIC, n // 2):,} among as"
        " many test pictures. "
    )
    if found.skill is None:
        text += "The data has no classes, so there is no classifier, and the rows that need one are left out."
    else:
        text += (
            f"Realism is taken in the {FEATURES} features of a small classifier trained on the same pictures:"
            f" {found.skill}."
        )
    return f"<p>{text}</p>"


def _numbers(numbers: Mapping[Kind, Sequence[Numbers]], *, reference: Numbers) -> str:
    rows = []
    for group in GROUPS:
        there = [q for q in group.quantities if any(n.get(q.key) is not None for ns in numbers.values() for n in ns)]
        if there:
            note = f" <small>{escape(group.note)}</small>" if group.note else ""
            rows.append(f'<tr><th colspan="7" class="group">{escape(group.title)}{note}</th></tr>')
        for q in there:
            cells = [_cell(numbers[kind], q) for kind in KINDS]
            cells.append(mean_and_spread([reference.get(q.key)], digits=q.digits).replace("–", ""))
            values = "".join(f'<td class="n">{cell}</td>' for cell in cells)
            rows.append(f'<tr><td class="name">{escape(q.title)}</td>{values}<td>{escape(q.meaning)}</td></tr>')
    head = "".join(f'<th class="n">{escape(title)}</th>' for title in (*(kind.title for kind in KINDS), "reference"))
    return f"<table><tr><th></th>{head}<th>meaning</th></tr>{''.join(rows)}</table>"


def _cell(seeds: Sequence[Numbers], quantity: Quantity) -> str:
    values = [numbers.get(quantity.key) for numbers in seeds]
    return mean_and_spread(values, digits=quantity.digits, error=seeds[0].get(standard_error_of(quantity.key)))


def _sweep(plan: Plan, found: Found) -> str:
    rows = []
    for group in GROUPS:
        for q in group.quantities:
            # The constant of recon depends on sigma, so a column could not be that of a beta 4 too.
            if q.key != "recon" and any(n.get(q.key) is not None for n in found.swept.values()):
                cells = "".join(f'<td class="n">{_cell([found.swept[sigma]], q)}</td>' for sigma in SIGMAS)
                rows.append(f"<tr><td>{escape(f'{group.title}: {q.title}')}</td>{cells}</tr>")
    same = "".join(f'<td class="n">sigma {sigma / 2:g}</td>' for sigma in SIGMAS)
    head = "".join(f'<th class="n">sigma {sigma:g}</th>' for sigma in SIGMAS)
    return (
        "<p>The smaller sigma is, the more a reconstruction counts against the KL term. For the autoencoder and beta 0"
        " there is nothing to sweep: with one term, sigma only scales the loss. Nor for beta 4: at some sigma its loss"
        " is four times that of the VAE at twice that sigma, up to a constant, so each column is a beta 4 too. Trained"
        f" on {len(plan.sketch.train):,} pictures, seed 0.</p>"
        f"<table><tr><th>the VAE at</th>{head}</tr><tr><td>is also beta 4 at</td>{same}</tr>{''.join(rows)}</table>"
    )


def _made(plan: Plan, found: Found) -> str:
    rows = [
        f"<tr><td><code>{member.name}</code></td><td>{escape(member.kind.title)}</td>"
        f'<td class="n">{member.latent_dim}</td><td class="n">{member.config.model.sigma}</td>'
        f'<td class="n">{member.seed}</td><td class="n">{member.config.data.n_train:,}</td>'
        f'<td class="n">{member.config.training.epochs}</td></tr>'
        for member in plan.members
    ]
    return (
        f"<p>{len(rows)} runs in {found.seconds / 60:.1f} minutes, on {escape(found.machine)}. Each lies in"
        " <code>runs/</code> with a card, figures and pictures of its own.</p>"
        '<table><tr><th>run</th><th></th><th class="n">latents</th><th class="n">sigma</th>'
        '<th class="n">seed</th><th class="n">pictures</th><th class="n">epochs</th>'
        f"</tr>{''.join(rows)}</table>"
        "<p>To try them side by side:</p><pre>vae-export make runs/* --into bundles\nvae-serve bundles/*\n"
        f"curl -s 'http://127.0.0.1:8000/sample?model={plan.measured(PLAIN, 0).name}&amp;n=16&amp;seed=1' -o vae.png"
        "</pre>"
    )


_CSS = """
body { font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #222; max-width: 1200px; margin: 2em auto;
  padding: 0 1em; }
h2 { margin-top: 2em; border-bottom: 1px solid #ccc; }
h3 { margin: 0; }
table { border-collapse: collapse; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: 0.25em 0.7em; border-bottom: 1px solid #e4e6e8; }
th.group { padding-top: 1em; color: #2f5d8a; }
small { color: #6b6b6b; font-weight: normal; }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.name { white-space: nowrap; }
td.held { color: #1b7837; font-weight: bold; white-space: nowrap; }
td.reversed { color: #b2182b; font-weight: bold; white-space: nowrap; }
td.not-told-apart, td.not-decided { color: #6b6b6b; white-space: nowrap; }
figure { margin: 2em 0; }
figure p { margin: 0.2em 0 0.6em; max-width: 60em; }
img { max-width: 100%; border: 1px solid #e4e6e8; }
pre { background: #f5f6f7; padding: 0.8em; overflow-x: auto; }
"""
