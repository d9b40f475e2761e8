"""What holds for every test: a machine that is busy with something else fails none of them, and each run is alike."""

from hypothesis import settings

settings.register_profile("unhurried", deadline=None, derandomize=True)
settings.load_profile("unhurried")
