"""The models that this process serves, found by `name` or `name@digest`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from service import prior, sizes
from service.batcher import Lane, Load, Queue, RowShape
from service.bundle import DECODER, ENCODER, PRIOR, SCORER, BadBundle, Bundle, Manifest, read
from service.engine import Cost, Engine, Graph, rows_of_a_run
from service.errors import NotFound
from service.machine import available_cores
from service.prior import FittedPrior
from service.settings import Settings


class Model:
    """One bundle, loaded, proven and warm, with a queue before each of its graphs.

    Raises:  BadBundle if its fitted prior is no density over its latents
    """

    def __init__(self, bundle: Bundle, *, engine: Engine, lane: Lane, settings: Settings) -> None:
        self.manifest: Manifest = bundle.manifest
        self.engine = engine
        self.image_axes, self.latent_axes = sizes.of_images(self.manifest), sizes.of_latents(self.manifest)
        self.prior = _fitted_prior(bundle)
        self._max_batch_rows, self._max_run_pixels = settings.max_batch_rows, settings.max_run_pixels
        height, width, _ = bundle.manifest.image.default_shape
        self._default_pixels = height * width
        self._lane = lane
        self.encoder = self._queue(ENCODER, engine.encoder, self._load_of_images)
        self.decoder = self._queue(DECODER, engine.decoder, self._load_of_latents)
        self.scorer = self._queue(SCORER, engine.scorer, self._load_of_images) if engine.scorer else None

    @cached_property
    def label(self) -> str:
        """`name@digest`, as `X-Model` carries it."""
        return self.manifest.label

    def image_shape_of(self, latent_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(h, w, c) of the picture that a latent of this shape decodes to."""
        image = self.manifest.image
        if not image.is_open:
            return image.default_shape
        _, rows, columns = latent_shape
        return rows * image.stride, columns * image.stride, image.channels

    def engine_rows(self, n: int, image_shape: tuple[int, ...]) -> int:
        """What n pictures of one size cost a graph: as many as there are, or where sizes are open their pixels in
        pictures of the default size, rounded up.
        """
        # Rounded up in whole numbers: n is as large as anyone may write it, a float is not.
        return -(-n * image_shape[0] * image_shape[1] // self._default_pixels)

    def _queue(self, name: str, graph: Graph, load: Callable[[RowShape, Cost], Load]) -> Queue:
        # A GPU takes one run at a time, whatever cores there are.
        cores = graph.threads if self.engine.device == "cpu" else self._lane.cores
        cost = self.engine.costs[name]
        return Queue(graph.run, lane=self._lane, load=lambda row_shape: load(row_shape, cost), cores=cores)

    def _load_of_images(self, image_shape: RowShape, cost: Cost) -> Load:
        pixels = image_shape[0] * image_shape[1]
        engine_rows = pixels / self._default_pixels
        return Load(
            max_rows=rows_of_a_run(pixels, max_batch_rows=self._max_batch_rows, max_run_pixels=self._max_run_pixels),
            engine_rows=engine_rows,
            run_us=cost.run_us,
            row_us=cost.row_us * engine_rows,
        )

    def _load_of_latents(self, latent_shape: RowShape, cost: Cost) -> Load:
        return self._load_of_images(self.image_shape_of(latent_shape), cost)


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

    @property
    def row_us(self) -> float:
        """CPU microseconds of one row in the cheapest encoder, all threads together."""
        return min(model.engine.costs[ENCODER].row_cpu_us for model in self.models)


def deploy(settings: Settings, *, cores: int | None = None) -> Deployment:
    """Every bundle of the settings, read with proof, on its device, warm; all of them share so many cores, by default
    all that this process may use.

    Raises:  BadBundle, BadEngine
    """
    cores = max(cores or available_cores(), settings.threads)
    lane = Lane(max_queue_rows=settings.max_queue_rows, cores=cores)
    models: dict[str, Model] = {}
    for path in settings.bundles:
        bundle = read(path)
        if bundle.manifest.name in models:
            raise BadBundle(f"{path}: a model named {bundle.manifest.name} is loaded already")
        engine = Engine(bundle, device=settings.device, threads=settings.threads, cores=cores)
        engine.warm(settings.max_batch_rows, settings.max_run_pixels)
        models[bundle.manifest.name] = Model(bundle, engine=engine, lane=lane, settings=settings)
    return Deployment(settings, Models(list(models.values())), lane)
