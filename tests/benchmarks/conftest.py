"""Linear models in the place of those that are measured, so that a short version of each measurement takes seconds."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.subjects import Subject
from benchmarks.versions import Versions, versions
from tests.service.linear import fitted_prior, linear, write_linear
from tests.service.wire import latents, pixels

SHAPE, LATENT_SHAPE = (6, 5, 3), (4,)


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A model that knows all verbs."""
    bundle, model = tmp_path_factory.mktemp("subject") / "model", linear(SHAPE, LATENT_SHAPE)
    manifest = write_linear(bundle, model, scorer=model.scorer(), fitted=fitted_prior())
    return Subject("model", manifest.digest, bundle, pixels(8, SHAPE), latents(8, LATENT_SHAPE))


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory, subject: Subject) -> Subject:
    """Another version of it, which answers otherwise."""
    bundle, model = tmp_path_factory.mktemp("other") / "model", linear(SHAPE, LATENT_SHAPE, seed=1)
    manifest = write_linear(bundle, model, scorer=model.scorer(), fitted=fitted_prior())
    return replace(subject, digest=manifest.digest, bundle=bundle)


@pytest.fixture(scope="session")
def both(subject: Subject, other: Subject) -> Versions:
    return versions((subject.bundle, other.bundle), subject.images)


@pytest.fixture(scope="session")
def bundles(subject: Subject, other: Subject) -> tuple[Path, Path]:
    return subject.bundle, other.bundle
