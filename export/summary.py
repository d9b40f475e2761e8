"""A manifest as a person reads it: aligned lines, sizes in words, no JSON."""

from itertools import groupby

from service.manifest import PRIOR, Diagnostics, ImageSpec, Likelihood, Manifest, Tolerance

Rows = list[tuple[str, str]]


def summary(manifest: Manifest) -> str:
    """Everything about a bundle that a person asks, section by section."""
    told = (
        (manifest.name, _identity(manifest)),
        ("model", _model(manifest)),
        ("files", _files(manifest)),
        ("measured against the source", _parity(manifest)),
        ("against the same graphs in fp32", _variant(manifest)),
        ("latents, over test pictures", _diagnostics(manifest)),
        ("figures, over test pictures", _figures(manifest)),
    )
    sections = [(title, [(_on_one_line(name), _on_one_line(text)) for name, text in rows]) for title, rows in told]
    width = max(len(name) for _, rows in sections for name, _ in rows)
    return "\n\n".join(
        "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in rows)]) for title, rows in sections if rows
    )


def in_words(n_bytes: int) -> str:
    """A size as 12 bytes, 775 kB or 331.2 MB."""
    if n_bytes < 1000:
        return f"{n_bytes} bytes"
    return f"{n_bytes / 1e3:.0f} kB" if n_bytes < 999_500 else f"{n_bytes / 1e6:.1f} MB"


def runs_in_words(shapes: tuple[tuple[int, int, int], ...]) -> str:
    """Shapes of runs as 1, 2, 7, 64 rows of 28×28, size by size."""
    sizes = groupby(shapes, key=lambda shape: shape[1:])
    return "; ".join(
        f"{', '.join(str(rows) for rows, *_ in runs)} rows of {height}×{width}" for (height, width), runs in sizes
    )


def _on_one_line(text: str) -> str:
    """A stranger's text as a terminal may show it: whatever is no visible character is written as Python escapes it."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _identity(manifest: Manifest) -> Rows:
    source = manifest.source
    return [
        ("digest", manifest.digest),
        ("licence", manifest.licence or "none; vae-export pack asks for one"),
        ("source", f"{source.network}, read with {source.kind} {source.version}"),
        ("precision", f"{manifest.precision}, ONNX opset {manifest.opset}"),
    ]


def _model(manifest: Manifest) -> Rows:
    low, high = manifest.logvar_range or (None, None)
    clamp = "" if low is None else f", logvar from {low:g} to {high:g}"
    rows = [
        ("family", manifest.family),
        ("pictures", _pictures(manifest.image)),
        ("latents", _latents(manifest)),
        ("likelihood", _likelihood(manifest.likelihood)),
        ("prior", _prior(manifest)),
        ("scale head", "" if manifest.scale_head is None else f"{manifest.scale_head}{clamp}"),
        ("latent scale", "" if manifest.latent_scale is None else f"{manifest.latent_scale:g}, not applied to z"),
        ("latent shift", "" if manifest.latent_shift is None else f"{manifest.latent_shift:g}, not applied to z"),
    ]
    return [row for row in rows if row[1]]


def _pictures(image: ImageSpec) -> str:
    colours = "grey" if image.channels == 1 else "colour"
    if not image.is_open:
        return f"{image.height}×{image.width}, {colours}"
    sides = f"sides are multiples of {image.stride} up to {image.max_side}"
    return f"{colours}, {sides}, {image.default_side} where none is asked for"


def _latents(manifest: Manifest) -> str:
    if not manifest.image.is_open:
        return "×".join(map(str, manifest.latent_shape))
    stride = manifest.image.stride
    return f"{manifest.latent_shape[0]} × height/{stride} × width/{stride}"


def _likelihood(likelihood: Likelihood | None) -> str:
    if likelihood is None:
        return "unknown"
    sigma = "" if likelihood.sigma is None else f", sigma {likelihood.sigma:g}"
    threshold = "" if likelihood.binarised_at is None else f", pictures binarised at {likelihood.binarised_at} of 255"
    return f"{likelihood.kind.replace('_', ' ')}{sigma}{threshold}"


def _prior(manifest: Manifest) -> str:
    kinds = [{"standard": "N(0, I)", "none": ""}[manifest.prior], "fitted" if PRIOR in manifest.files else ""]
    return ", ".join(filter(None, kinds)) or "none"


def _files(manifest: Manifest) -> Rows:
    files = manifest.files.items()
    total = in_words(sum(entry.size_bytes for _, entry in files))
    rows = [(name, f"{in_words(entry.size_bytes):>9}  sha256 {entry.sha256[:12]}…") for name, entry in files]
    return [*rows, ("in all", f"{total:>9}")]


def _parity(manifest: Manifest) -> Rows:
    parity, tolerance = manifest.parity, manifest.tolerance
    rows = [
        ("mu", parity.mu, "mu"),
        ("logvar", parity.logvar, "logvar"),
        ("pictures", parity.image, "image"),
        ("log-likelihood", parity.log_likelihood, "log_likelihood"),
        ("mu in sigmas", parity.mu_in_sigma, "mu_in_sigma"),
    ]
    allowed = tolerance.model_dump(exclude_none=True)
    told = [
        (name, f"largest {found.max:.2g}, mean {found.mean:.2g}{_allowed(allowed.get(of), allowed.get(f'{of}_mean'))}")
        for name, found, of in rows
        if found
    ]
    if parity.psnr_db is not None and not isinstance(tolerance, Tolerance):
        told.append(("PSNR", f"{parity.psnr_db:.1f} dB, at least {tolerance.psnr_db:g}"))
    return [
        *told,
        ("over", f"{parity.pictures} pictures, {parity.real_pictures} of them real"),
        ("runs of", runs_in_words(parity.shapes)),
    ]


def _allowed(largest: float | None, mean: float | None) -> str:
    """What a difference may be, after what it is; older bundles bound no mean, and none is in fp32."""
    return "".join(
        f", {where} {bound:g}" for where, bound in (("allowed", largest), ("on average", mean)) if bound is not None
    )


def _variant(manifest: Manifest) -> Rows:
    variant = manifest.variant
    if variant is None:
        return []
    return [
        ("encoder", f"{variant.encoder_speedup:.2f} times as fast"),
        ("decoder", f"{variant.decoder_speedup:.2f} times as fast"),
        ("size", f"{variant.size_ratio:.0%}"),
        ("with", f"{variant.batch_rows} rows, on {variant.machine}"),
    ]


def _diagnostics(manifest: Manifest) -> Rows:
    found = manifest.diagnostics
    if found is None:
        return []
    kl = found.kl_per_dimension
    nats = [("KL", f"{sum(kl):.2f} nats, from {min(kl):.2f} to {max(kl):.2f} per dimension")] if kl else []
    active = [("active units", f"{found.active_units} of {_latents(manifest)}")] if manifest.family == "vae" else []
    return [
        *active,
        *nats,
        ("mu", f"from {found.mu_min:.2f} to {found.mu_max:.2f}"),
        *_trust(found),
    ]


def _trust(diagnostics: Diagnostics) -> Rows:
    trust = diagnostics.trust
    if trust is None:
        return []
    verdicts = {
        "samples of N(0, I)": trust.standard,
        "samples of the fitted prior": trust.fitted,
        "interpolations": trust.interpolate,
    }
    return [
        (name, "trusted" if verdict.trusted else f"not to be trusted: {verdict.reason}")
        for name, verdict in verdicts.items()
        if verdict
    ]


def _figures(manifest: Manifest) -> Rows:
    numbers = {name: value for name, value in (manifest.metrics or {}).items() if isinstance(value, float)}
    return [(name, f"{value:,.4g}") for name, value in numbers.items()]
