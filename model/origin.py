"""The run whose weights another one starts from: what is kept of it, and what the other one may not do then."""

from pathlib import Path

import numpy as np

from model import fingerprints
from model.checkpoint import Checkpoint, DataConfig, Origin, probe_of
from model.data import Dataset
from model.errors import BadSetting
from model.settings import require_same
from model.vae import ModelConfig

# Why a setting of the model is not free any more.
AS_THE_ORIGIN = "as the run has that it is to start from"


def origin_of(folder: Path, found: Checkpoint, *, dataset: Dataset) -> Origin:
    """Where a run starts, if it does with the weights of the checkpoint that was found in a folder."""
    before = found.config.origin
    return Origin(
        folder.resolve().name,
        sha256=fingerprints.of_model(found.vae),
        same_test=_has_same_test(dataset, found) and (before is None or before.same_test),
        tests=(fingerprints.of_images(found.probe), *(before.tests if before else ())),
    )


def _has_same_test(dataset: Dataset, found: Checkpoint) -> bool:
    """Whether a run kept back the test pictures of this data: then it is the same, but perhaps for what validates."""
    return np.array_equal(probe_of(dataset), found.probe)


def require_same_model(model: ModelConfig, origin: Checkpoint) -> None:
    """Nothing, if a model can start from the weights of another run.

    Raises:  BadSetting if one of its settings is not that of the run
    """
    require_same(vars(model), vars(origin.config.model), why=AS_THE_ORIGIN)


def require_unseen_validation(data: DataConfig, dataset: Dataset, origin: Checkpoint) -> None:
    """Nothing, if no picture to validate on is one that the weights have learnt already.

    Raises:  BadSetting
    """
    if data.n_validation == 0:
        return
    got = f"validation: got {data.n_validation} pictures by seed {data.validation_seed}"
    before, earlier = origin.config.data, origin.config.origin
    if _has_same_test(dataset, origin):
        was = before.n_validation, before.validation_seed
        if (data.n_validation, data.validation_seed) != was:
            expected = f"0, or {was[0]} by seed {was[1]}" if was[0] else "0"
            learnt = "the run that this one is to start from has learnt from all others"
            raise BadSetting(f"{got}, expected {expected}: {learnt}")
        if dataset.is_validation_drawn and data.sha256 != before.sha256:
            learnt = "from other training pictures than these the same seed drew others, and these may have been learnt"
            raise BadSetting(f"{got}, expected 0: {learnt} by the run that this one is to start from")
    elif earlier is not None and fingerprints.of_images(probe_of(dataset)) in earlier.tests:
        learnt = "from this data a run has learnt that came before the one that this one is to start from"
        raise BadSetting(f"{got}, expected 0: {learnt}")
