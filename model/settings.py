"""Settings that are asked for beside those that a run has."""

from collections.abc import Mapping
from typing import Any

from model.errors import BadSetting


def require_same(now: Mapping[str, Any], was: Mapping[str, Any], *, why: str) -> None:
    """Nothing, if all settings of one that the other has too are the same there.

    Raises:  BadSetting that names the first which is not, and why it must be
    """
    for name, value in now.items():
        if name in was and value != was[name]:
            raise BadSetting(f"{name}: got {value}, expected {was[name]}, {why}")
