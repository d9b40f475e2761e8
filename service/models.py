"""The models that this process serves, found by `name` or `name@digest`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from service.batcher import Lane, Queue
from service.bundle import BadBundle, Bundle, Manifest, read
from service.engine import Engine
from service.errors import NotFound
from service.settings import Settings


class Model:
    """One bundle, loaded, proven and warm, with a queue before each of its graphs."""

    def __init__(self, bundle: Bundle, *, engine: Engine, lane: Lane, max_batch_rows: int) -> None:
        self.manifest: Manifest = bundle.manifest
        self.engine = engine
        self.encoder = Queue(engine.encoder.run, lane=lane, max_batch_rows=max_batch_rows)
        self.decoder = Queue(engine.decoder.run, lane=lane, max_batch_rows=max_batch_rows)

    @cached_property
    def label(self) -> str:
        """`name@digest`, as `X-Model` carries it."""
        return self.manifest.label


class Models:
    """The loaded models; the first is the default."""

    def __init__(self, models: Sequence[Model]) -> None:
        self.default = models[0]
        self._by_name = {model.manifest.name: model for model in models}

    def find(self, asked: str | None) -> Model:
        """The model that `?model=` asks for.

        Raises:  NotFound if no loaded model has that name and digest
        """
        if asked is None:
            return self.default
        name, pinned, digest = asked.partition("@")
        model = self._by_name.get(name)
        if model is None or (pinned and digest != model.manifest.digest):
            loaded = ", ".join(model.label for model in self)
            raise NotFound(f"model: got {asked[:200]}, loaded are {loaded}")
        return model

    def __iter__(self) -> Iterator[Model]:
        return iter(self._by_name.values())


@dataclass(frozen=True)
class Deployment:
    """What every request can see: the settings, the models and the lane they share."""

    settings: Settings
    models: Models
    lane: Lane


def deploy(settings: Settings) -> Deployment:
    """Every bundle of the settings, read with proof, on its device, warm.

    Raises:  BadBundle, BadEngine
    """
    lane = Lane(max_queue_rows=settings.max_queue_rows)
    models: dict[str, Model] = {}
    for folder in settings.bundles:
        bundle = read(folder)
        if bundle.manifest.name in models:
            raise BadBundle(f"{folder}: a model named {bundle.manifest.name} is loaded already")
        engine = Engine(bundle, device=settings.device, threads=settings.threads)
        engine.warm(settings.max_batch_rows)
        models[bundle.manifest.name] = Model(bundle, engine=engine, lane=lane, max_batch_rows=settings.max_batch_rows)
    return Deployment(settings, Models(list(models.values())), lane)
