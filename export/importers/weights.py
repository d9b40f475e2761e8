"""The tensors of a safetensors file, checked against the module that they belong to."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from export.frozen import CannotImport


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, every floating one as float32. Reading them executes nothing.

    Raises:  CannotImport if the file is missing, not whole, or holds NaN or infinity
    """
    if not path.is_file():
        raise CannotImport(f"{path}: got nothing there, expected weights as safetensors")
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CannotImport(f"{path}: not readable as safetensors ({error}), expected whole ones") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor.float()).all():
            raise CannotImport(f"{path}, {name}: holds NaN or infinity, expected finite numbers")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def matched(tensors: Mapping[str, Tensor], module: nn.Module, *, path: Path) -> dict[str, Tensor]:
    """The tensors that `load_state_dict` of a module takes: all of its own, and no other.

    A tensor that a module holds under two names stands in a safetensors file under one of them.

    Raises:  CannotImport that names the first tensor that is missing, of another shape, or too many
    """
    expected = module.state_dict(keep_vars=True)
    shared = {id(own): tensors[name] for name, own in expected.items() if name in tensors}
    found = {**tensors, **{name: shared[id(own)] for name, own in expected.items() if id(own) in shared}}
    for name in sorted(found.keys() | expected.keys()):
        got, wanted = (str(tuple(side[name].shape)) if name in side else "nothing" for side in (found, expected))
        if got != wanted:
            raise CannotImport(f"{path}, {name}: got {got}, the module has {wanted}")
    return found
