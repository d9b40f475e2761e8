"""What this process serves with: settings, models, and what these share; made at the start and at each reload."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from service.body_room import BodyRoom
from service.bundle import BadBundle, Bundle, read
from service.callers import Patience
from service.engine import start
from service.graph import resolve_device
from service.lane import Lane
from service.machine import available_cores
from service.manifest import ENCODER
from service.models import Model, Models
from service.observation.metrics import Metrics
from service.room import Room
from service.settings import Settings


@dataclass(frozen=True)
class Deployment:
    """What every request can see: the settings, the models, the lane they share, the patience of their callers, the
    room for bodies until they are answered, and the room for the pixels of large pictures that are decoded, and of
    large answers that are written at a time: as many in all as one may have.
    """

    settings: Settings
    models: Models
    lane: Lane
    body_room: BodyRoom
    picture_room: Room
    answer_room: Room
    patience: Patience = field(default_factory=Patience)

    @property
    def is_wedged(self) -> bool:
        """Whether a run of a graph will not end."""
        return self.lane.is_wedged(self.settings.wedge_timeout_s)

    @property
    def row_us(self) -> float:
        """CPU microseconds of one row in the cheapest encoder, all threads together."""
        return min(model.engine.costs[ENCODER].row_cpu_us for model in self.models)


def deploy(settings: Settings, *, metrics: Metrics, cores: int | None = None) -> Deployment:
    """Every bundle of the settings, read with proof, on its device, warm; all of them share so many cores, by default
    all that this process may use, and count in `metrics`.

    Raises:  BadBundle, BadEngine
    """
    lane = _lane(settings, metrics=metrics, cores=cores)
    return Deployment(
        settings,
        _loaded(settings, lane),
        lane,
        body_room=BodyRoom(max_body_bytes=settings.max_body_bytes),
        picture_room=Room(settings.max_picture_pixels),
        answer_room=Room(settings.max_answer_pixels),
    )


def _lane(settings: Settings, *, metrics: Metrics, cores: int | None) -> Lane:
    cores = max(cores or available_cores(), settings.threads)
    # A GPU takes one run of a process at a time, and lends no cores.
    are_lent = metrics.are_shared and resolve_device(settings.device) == "cpu"
    return Lane(
        max_queue_rows=settings.max_queue_rows,
        cores=cores,
        machine_cores=available_cores() if are_lent else cores,
        metrics=metrics,
    )


def _loaded(settings: Settings, lane: Lane, *, beside: Iterable[Model] = ()) -> Models:
    models: dict[str, Model] = {}
    for path in settings.bundles:
        bundle = read(path)
        if bundle.manifest.name in models:
            raise BadBundle(f"{path}: a model named {bundle.manifest.name} is loaded already")
        models[bundle.manifest.name] = _kept(bundle, beside) or _started(bundle, lane=lane, settings=settings)
    return Models(list(models.values()))


def _kept(bundle: Bundle, beside: Iterable[Model]) -> Model | None:
    """The model that serves from this place, if the bundle is in every file what it was made of, and it is well. One
    that is loaded beside others at work takes memory twice, and finds what its graphs cost too high.
    """
    same = (model for model in beside if (model.path, model.manifest) == (bundle.path, bundle.manifest))
    return next((model for model in same if not model.is_suspicious), None)


def reloaded(deployment: Deployment, name: str | None) -> Deployment:
    """What the settings name as it is by now, beside what is there: the bundle of one model, or without a name all. A
    model that has not changed stays. All share lane and room with what is there, so that a run which does not end is
    still noticed, and bytes and pixels are bounded while requests of both are answered.

    Raises:  BadBundle, BadEngine, NotFound if there is no such model
    """
    settings, lane = deployment.settings, deployment.lane
    if name is None:
        return replace(deployment, models=_loaded(settings, lane, beside=deployment.models))
    path = deployment.models.find(name).path
    bundle = read(path)
    if bundle.manifest.name != name:
        raise BadBundle(f"{path}: got a model named {bundle.manifest.name}, expected {name}")
    model = _kept(bundle, deployment.models) or _started(bundle, lane=lane, settings=settings)
    return replace(deployment, models=deployment.models.with_(model))


def _started(bundle: Bundle, *, lane: Lane, settings: Settings) -> Model:
    """A bundle on its device, proven and warm."""
    engine = start(
        bundle, device=settings.device, threads=settings.threads, precision=settings.precision, cores=lane.cores
    )
    engine.warm(settings.max_batch_rows, settings.max_run_pixels)
    return Model(bundle, engine=engine, lane=lane, settings=settings)
