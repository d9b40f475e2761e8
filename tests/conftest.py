"""What holds for every test: a machine that is busy with something else fails none of them, and each run is alike."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings
from PIL import Image

settings.register_profile("unhurried", deadline=None, derandomize=True)
settings.load_profile("unhurried")


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_the_shell() -> Iterator[None]:
    """Whoever runs the tests may have set the service's own variables, which its processes would take."""
    with pytest.MonkeyPatch.context() as patched:
        for name in list(os.environ):
            if name.startswith(("VAE_", "OTEL_")):
                patched.delenv(name)
        yield


@pytest.fixture(autouse=True)
def _any_picture() -> Iterator[None]:
    """Pillow has one bound on pixels for a whole process, which is the service's own in its own process."""
    before = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = before
