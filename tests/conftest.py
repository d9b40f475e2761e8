"""What holds for every test: a machine that is busy with something else fails none of them, and each run is alike."""

from collections.abc import Iterator

import pytest
from hypothesis import settings
from PIL import Image

settings.register_profile("unhurried", deadline=None, derandomize=True)
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _any_picture() -> Iterator[None]:
    """Pillow has one bound on pixels for a whole process, which is the service's own in its own process."""
    before = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = before
