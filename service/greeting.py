"""What an operator reads when the models are ready: each one, and at the start a line to try."""

from service.deployment import Deployment
from service.manifest import Manifest
from service.models import Model

# Pictures up to here are shown sixteen at a time, and enlarged.
_SMALL_PIXELS = 64 * 64


def lines(deployment: Deployment, *, onnxruntime: str, url: str) -> tuple[str, ...]:
    """A line for each model, and one that shows what the first does."""
    return (
        *(
            f"model {model.label[: len(model.manifest.name) + 13]}: {_described(model, onnxruntime)}"
            for model in deployment.models
        ),
        f"try:  {_first_try(deployment.models.default, url, keyed=deployment.settings.is_keyed)}",
    )


def served(deployment: Deployment, name: str | None) -> tuple[str, ...]:
    """What is served once a model is reloaded, or without a name all of them: a line for each."""
    models = deployment.models
    reloaded = models if name is None else (models.find(name),)
    return tuple(f"{model.label}: {_described(model)}" for model in reloaded)


def _described(model: Model, onnxruntime: str = "") -> str:
    """Shapes, and what runs the model."""
    engine = model.engine
    threads = "1 thread" if engine.threads == 1 else f"{engine.threads} threads"
    return (
        f"{_shapes(model.manifest)}, {engine.provider}{onnxruntime and f' ({onnxruntime})'}, "
        f"{engine.precision}{engine.remark and f' ({engine.remark})'}, {threads}"
    )


def _shapes(manifest: Manifest) -> str:
    """What pictures and latents a model takes, for a person."""
    image = manifest.image
    latents = "x".join("?" if axis is None else str(axis) for axis in manifest.latent_shape)
    if image.max_side is None:
        return f"{'x'.join(map(str, image.shape))}, latents {latents}"
    sizes = f"sizes up to {image.max_side}x{image.max_side}, multiples of {image.stride}"
    return f"{sizes}, {image.channels} channels, latents {latents}"


def _first_try(model: Model, url: str, *, keyed: bool) -> str:
    """A line that shows what the model does: sixteen small pictures or a large one, where seeds have pictures."""
    if model.manifest.prior == "none" and model.prior is None:
        return f"{url}/docs"
    height, width, _ = model.manifest.image.default_shape
    asked = "n=16&seed=7&scale=4" if height * width <= _SMALL_PIXELS else "seed=7"
    shown = ' -H "Authorization: Bearer $KEY"' if keyed else ""
    return f"curl -s '{url}/sample?{asked}'{shown} -o sample.png"
