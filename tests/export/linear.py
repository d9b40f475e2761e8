"""The linear models of the service's tests, as an importer would hand them over: every answer is plain numpy."""

import numpy as np

from export.frozen import Described, Float32, Frozen, Graphs, Source, Uint8
from service import manifest
from tests.service.linear import Linear, OpenLinear

_AS_THEY_ARE = ("family", "latent_shape", "prior", "scale_head", "logvar_range")


def frozen(model: Linear | OpenLinear, *, pictures: Uint8 | None = None, scores: bool = True) -> Frozen:
    """The model with its graphs, and numpy as its source."""
    fields = model.fields("linear")
    described = Described(
        image=manifest.ImageSpec.model_validate(fields["image"]),
        source=manifest.Source.model_validate(fields["source"]),
        likelihood=manifest.Likelihood.model_validate(fields["likelihood"]),
        **{name: fields[name] for name in _AS_THEY_ARE},
    )
    return Frozen(
        graphs=Graphs(model.encoder(), model.decoder(), model.scorer() if scores else None),
        source=source(model, scores=scores),
        described=described,
        pictures=pictures,
    )


def source(model: Linear | OpenLinear, *, scores: bool = True) -> Source:
    """numpy's answers, those of an autoencoder without logvar."""

    def encode(image: Uint8) -> tuple[Float32, Float32 | None]:
        mu, logvar = model.encode(image)
        return mu, logvar if model.family == "vae" else None

    return Source(encode, model.decode, model.log_likelihood if scores else None)


def noise(n: int, shape: tuple[int, int, int], seed: int = 3) -> Uint8:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)
