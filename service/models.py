"""The models that this process serves, found by `name` or `name@digest`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from service import cards, prior, sizes
from service.batcher import Load, Queue, RowShape
from service.bundle import DECODER, ENCODER, PRIOR, SCORER, BadBundle, Bundle, Manifest, read
from service.callers import Patience
from service.engine import Cost, Engine, rows_of_a_run, start
from service.errors import NotFound
from service.graph import Graph, resolve_device
from service.lane import Lane
from service.machine import available_cores
from service.observation.metrics import Metrics
from service.prior import FittedPrior
from service.settings import Settings
from service.turns import Turns


class Model:
    """One bundle, loaded, proven and warm, with a queue before each of its graphs.

    Raises:  BadBundle if its fitted prior is no density over its latents, or its card no text
    """

    def __init__(self, bundle: Bundle, *, engine: Engine, lane: Lane, settings: Settings) -> None:
        self.path = bundle.path
        self.manifest: Manifest = bundle.manifest
        self.engine = engine
        self.image_axes, self.latent_axes = sizes.of_images(self.manifest), sizes.of_latents(self.manifest)
        self.prior = _fitted_prior(bundle)
        self.card = cards.page(bundle)
        self._default_pixels = _default_pixels(self.manifest)

        def queue(name: str, graph: Graph) -> Queue:
            # A GPU takes one run at a time, whatever cores there are.
            cores = graph.threads if engine.device == "cpu" else lane.cores
            most = min(settings.max_batch_rows, engine.most_rows(name))
            loads = _Loads(self.manifest, engine.costs[name], most, settings.max_run_pixels)
            load = loads.of_latents if name == DECODER else loads.of_images
            single = engine.singles.get(name)
            return Queue(graph.run, lane=lane, load=load, cores=cores, run_single=single.run if single else None)

        self.encoder = queue(ENCODER, engine.encoder)
        self.decoder = queue(DECODER, engine.decoder)
        self.scorer = queue(SCORER, engine.scorer) if engine.scorer else None

    @cached_property
    def label(self) -> str:
        """`name@digest`, as `X-Model` carries it."""
        return self.manifest.label

    def engine_rows(self, n: int, image_shape: tuple[int, ...]) -> int:
        """What n pictures of one size cost a graph: as many as there are, or where sizes are open their pixels in
        pictures of the default size, rounded up.
        """
        # Rounded up in whole numbers: n is as large as anyone may write it, a float is not.
        return -(-n * image_shape[0] * image_shape[1] // self._default_pixels)


@dataclass(frozen=True)
class _Loads:
    """What rows of each shape are to a graph. It knows no queue and no model, so that a model whose place another one
    has taken is gone with the last of its requests.
    """

    manifest: Manifest
    cost: Cost
    max_batch_rows: int
    max_run_pixels: int

    def of_images(self, image_shape: RowShape) -> Load:
        pixels = image_shape[0] * image_shape[1]
        engine_rows = pixels / _default_pixels(self.manifest)
        return Load(
            max_rows=rows_of_a_run(pixels, max_batch_rows=self.max_batch_rows, max_run_pixels=self.max_run_pixels),
            engine_rows=engine_rows,
            run_us=self.cost.run_us,
            row_us=self.cost.row_us * engine_rows,
        )

    def of_latents(self, latent_shape: RowShape) -> Load:
        return self.of_images(self.manifest.image_shape_of(latent_shape))


def _default_pixels(manifest: Manifest) -> int:
    height, width, _ = manifest.image.default_shape
    return height * width


def _fitted_prior(bundle: Bundle) -> FittedPrior | None:
    if bundle.prior is None:
        return None
    height, width, _ = bundle.manifest.image.default_shape
    (latent_dim,) = bundle.manifest.latent_shape_of(height, width)
    return prior.read(bundle.prior, bundle.path / PRIOR, latent_dim=latent_dim)


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
            raise NotFound(f"model: got {asked[:200]}, loaded are {', '.join(self.labels)}")
        return model

    def with_(self, model: Model) -> "Models":
        """The same, with this model in the place of the one that has its name."""
        return Models(list((self._by_name | {model.manifest.name: model}).values()))

    @property
    def labels(self) -> tuple[str, ...]:
        """`name@digest` of each."""
        return tuple(model.label for model in self)

    def __iter__(self) -> Iterator[Model]:
        return iter(self._by_name.values())


@dataclass(frozen=True)
class Deployment:
    """What every request can see: the settings, the models, the lane they share, the patience of their callers, and
    the room for the pixels of large pictures that are decoded at a time, as many in all as one may have.
    """

    settings: Settings
    models: Models
    lane: Lane
    large: Turns
    patience: Patience = field(default_factory=Patience)

    @property
    def is_wedged(self) -> bool:
        """Whether a run of a graph will not end."""
        return self.lane.is_wedged(self.settings.wedge_timeout_s)

    @property
    def row_us(self) -> float:
        """CPU microseconds of one row in the cheapest encoder, all threads together."""
        return min(model.engine.costs[ENCODER].row_cpu_us for model in self.models)


def deploy(settings: Settings, *, cores: int | None = None, metrics: Metrics | None = None) -> Deployment:
    """Every bundle of the settings, read with proof, on its device, warm; all of them share so many cores, by default
    all that this process may use, and count in `metrics`, by default their own.

    Raises:  BadBundle, BadEngine
    """
    lane = _lane(settings, cores=cores, metrics=metrics)
    return Deployment(settings, _loaded(settings, lane), lane, large=Turns(settings.max_picture_pixels))


def _lane(settings: Settings, *, cores: int | None, metrics: Metrics | None) -> Lane:
    cores = max(cores or available_cores(), settings.threads)
    # A GPU takes one run of a process at a time, and lends no cores.
    are_lent = metrics is not None and metrics.are_shared and resolve_device(settings.device) == "cpu"
    return Lane(
        max_queue_rows=settings.max_queue_rows,
        cores=cores,
        machine_cores=available_cores() if are_lent else cores,
        metrics=metrics,
    )


def _loaded(settings: Settings, lane: Lane) -> Models:
    models: dict[str, Model] = {}
    for path in settings.bundles:
        bundle = read(path)
        if bundle.manifest.name in models:
            raise BadBundle(f"{path}: a model named {bundle.manifest.name} is loaded already")
        models[bundle.manifest.name] = _started(bundle, lane=lane, settings=settings)
    return Models(list(models.values()))


def redeploy(deployment: Deployment, name: str | None) -> Deployment:
    """What the settings name as it is by now, beside what is there: the bundle of one model, or without a name all. It
    shares lane and room with what is there, so that a run which does not end is still noticed, and pixels are bounded
    while requests of both are answered.

    Raises:  BadBundle, BadEngine, NotFound if there is no such model
    """
    settings, lane = deployment.settings, deployment.lane
    if name is None:
        return replace(deployment, models=_loaded(settings, lane))
    path = deployment.models.find(name).path
    bundle = read(path)
    if bundle.manifest.name != name:
        raise BadBundle(f"{path}: got a model named {bundle.manifest.name}, expected {name}")
    model = _started(bundle, lane=lane, settings=settings)
    return replace(deployment, models=deployment.models.with_(model))


def _started(bundle: Bundle, *, lane: Lane, settings: Settings) -> Model:
    """A bundle on its device, proven and warm."""
    engine = start(
        bundle, device=settings.device, threads=settings.threads, precision=settings.precision, cores=lane.cores
    )
    engine.warm(settings.max_batch_rows, settings.max_run_pixels)
    return Model(bundle, engine=engine, lane=lane, settings=settings)
