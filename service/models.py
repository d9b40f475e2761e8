"""The models that this process serves, found by `name` or `name@digest`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from service import cards, prior, sizes
from service.batcher import Load, Queue, RowShape
from service.bundle import Bundle
from service.engine import Cost, Engine, rows_of_a_run
from service.errors import NotFound, OutOfMemory, found_at
from service.lane import Lane
from service.manifest import DECODER, ENCODER, PRIOR, SCORER, Manifest
from service.prior import FittedPrior
from service.settings import Settings

# So many runs that fail one after the other may be due to the graph and not to what was sent.
_SUSPICIOUS_RUNS = 3


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
        self._queues = {name: _queue(name, engine=engine, lane=lane, settings=settings) for name in engine.graphs}
        self.encoder, self.decoder, self.scorer = self._queues[ENCODER], self._queues[DECODER], self._queues.get(SCORER)

    @cached_property
    def label(self) -> str:
        """`name@digest`, as `X-Model` carries it."""
        return self.manifest.label

    @property
    def is_suspicious(self) -> bool:
        """Whether the runs of a graph have all failed of late."""
        return any(queue.failed_runs >= _SUSPICIOUS_RUNS for queue in self._queues.values())

    async def failing_graph(self) -> str | None:
        """A graph whose runs have all failed of late, and which fails also on a row that it ran at the start."""
        for name, queue in self._queues.items():
            if queue.failed_runs >= _SUSPICIOUS_RUNS:
                try:
                    await queue.submit(*self.engine.blank(name, 1))
                except OutOfMemory:
                    continue
                except Exception:  # whatever it is
                    return name
        return None

    def engine_rows(self, n: int, image_shape: tuple[int, ...]) -> int:
        """What n pictures of one size cost a graph: as many as there are, or where sizes are open their pixels in
        pictures of the default size, rounded up.
        """
        # Rounded up in whole numbers: n is as large as anyone may write it, a float is not.
        return -(-n * image_shape[0] * image_shape[1] // self._default_pixels)


def _queue(name: str, *, engine: Engine, lane: Lane, settings: Settings) -> Queue:
    """The queue before one of an engine's graphs."""
    graph, single = engine.graphs[name], engine.singles.get(name)
    most = min(settings.max_batch_rows, engine.most_rows(name))
    pixels = _default_pixels(engine.manifest)
    loads = _Loads(engine.manifest, engine.costs[name], pixels, most, settings.max_run_pixels)
    return Queue(
        graph.run,
        wake=lane.wake,
        load=loads.of_latents if name == DECODER else loads.of_images,
        cores=graph.threads if engine.device == "cpu" else lane.cores,  # a GPU takes one run at a time
        run_single=single.run if single else None,
    )


@dataclass(frozen=True)
class _Loads:
    """What rows of each shape are to a graph. It knows no queue and no model, so that a model whose place another one
    has taken is gone with the last of its requests.
    """

    manifest: Manifest
    cost: Cost
    default_pixels: int
    max_batch_rows: int
    max_run_pixels: int

    def of_images(self, image_shape: RowShape) -> Load:
        pixels = image_shape[0] * image_shape[1]
        engine_rows = pixels / self.default_pixels
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

    def find(self, asked: str | None, *, where: str = "model") -> Model:
        """The model of this name, or `name@digest`; the default one where none is asked for.

        Raises:  NotFound that names the place which asked, if no loaded model has that name and digest
        """
        if asked is None:
            return self.default
        name, pinned, digest = asked.partition("@")
        model = self._by_name.get(name)
        if model is None or (pinned and digest != model.manifest.digest):
            raise found_at(where, NotFound, got=asked, expected=f"one of {', '.join(self.labels)}")
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
