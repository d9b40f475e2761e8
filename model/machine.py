"""Where a run computes: its device, its processes and what they tell each other, and how exactly it repeats itself."""

import atexit
import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import Tensor

from model.errors import BadSetting, Died

DEVICES = ("auto", "cpu", "cuda")

# So long a process waits for the others, of which one may read more slowly, or validate a large part by itself; by
# default they give up after 10 or 30 minutes. One that ends is noticed at once, but a machine that is lost only then.
_PATIENCE = timedelta(hours=6)

# What gloo and NCCL say where another process does not answer any more.
_IS_OF_PEERS = re.compile(r"(?i)gloo|nccl|peer|connection")
# NCCL names its own place first, then the reason; what follows are frames of its stack.
_SAID = 400


class Accelerator(Protocol):
    """The part of Hugging Face accelerate's `Accelerator` that several processes need."""

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        """The sum over processes, the same on each."""

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, in the order of their ranks, one after another."""

    def end_training(self) -> None:
        """Leave the group of processes."""


@dataclass(frozen=True)
class Machine:
    """One process of a run: its device, its rank among how many, and its line to the others."""

    device: torch.device
    rank: int = 0
    processes: int = 1
    accelerator: Accelerator | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to people."""
        return self.rank == 0

    def summed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sum of each tensor over all processes, in one exchange.

        Shapes:  as they come, float32
        Raises:  Died if one of them has ended
        """
        if self.accelerator is None:
            return list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _peers():
            flat = self.accelerator.reduce(flat, "sum")
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def gathered(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, in the order of their ranks.

        Shapes:  (*shape) -> (processes, *shape)
        Raises:  Died if one of them has ended
        """
        if self.accelerator is None:
            return tensor.unsqueeze(0)
        mine = tensor.unsqueeze(0).to(self.device)
        with _peers():
            gathered = self.accelerator.gather(mine)
        return gathered.cpu()

    def any(self, said: bool) -> bool:
        """Whether any process says so; all of them hear the same."""
        if self.accelerator is None:
            return said
        (votes,) = self.summed([torch.tensor([float(said)], device=self.device)])
        return bool(votes.item())

    def leave(self) -> None:
        """Part from the others, once all of them have come here: on GPUs each waits for the last one to leave."""
        if self.accelerator is not None:
            self.accelerator.end_training()

    def facts(self) -> dict[str, Any]:
        """What the last digits of a run depend on, beside its settings."""
        return {
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else cpu_model(),
            "threads": torch.get_num_threads(),
            "processes": self.processes,
        }


def join(device: str, *, processes: int) -> Machine:
    """This process's place in a run of so many processes, started by `torchrun` or `accelerate launch`.

    Raises:  BadSetting if the device is not there, or if another number of processes came up than was asked for
    """
    if device not in DEVICES:
        raise BadSetting(f"device: got {device!r}, expected one of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise BadSetting("device: got cuda, expected a GPU that torch can use; this torch sees none")
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != processes:
        how = f"`torchrun --nproc_per_node {processes} -m model fit … --processes {processes}`"
        raise BadSetting(f"processes: got {started} of them started, expected {processes}; start them with {how}")
    if processes == 1:
        return Machine(torch.device(kind))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    if kind == "cuda" and here > torch.cuda.device_count():
        n_gpus = torch.cuda.device_count()
        raise BadSetting(f"processes: got {here} on this machine, expected at most {n_gpus}, one for each GPU it has")
    import accelerate  # takes seconds to import, and a single process never needs it

    patient = accelerate.InitProcessGroupKwargs(timeout=_PATIENCE)
    accelerator = accelerate.Accelerator(cpu=kind == "cpu", kwargs_handlers=[patient])
    if kind == "cpu":
        # Threads of the process group that outlive the interpreter now and then abort the process. On GPUs a process
        # that has failed would wait here for the others, who wait for it, so there they leave by `leave` alone.
        atexit.register(accelerator.end_training)
    if accelerator.num_processes != processes:
        raise BadSetting(f"processes: got {accelerator.num_processes} that found each other, expected {processes}")
    return Machine(accelerator.device, accelerator.process_index, processes, accelerator)


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Convolutions in float32 on a GPU, which rounds their inputs to 10 bits (TF32) unless told; the caller's setting
    comes back. Figures are to be those of the weights; training gets along with it, and is quicker.
    """
    was = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = was


@contextmanager
def deterministic(machine: Machine) -> Iterator[None]:
    """The same bits on every run on a CPU; the caller's settings come back.

    A GPU is left as it is: its deterministic kernels are slower, and other GPUs would round otherwise all the same.
    """
    if machine.device.type != "cpu":
        yield
        return
    memory: Any = torch.utils.deterministic  # its one attribute is made at run time, unseen by type checkers
    were = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory costs time, and only hides reads that these networks do not make.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(were, warn_only=only_warned)
        memory.fill_uninitialized_memory = filled


@contextmanager
def _peers() -> Iterator[None]:
    """While processes tell each other something, one of them may be gone, and why, it has said itself; or the exchange
    itself fails, for a reason that only its error tells.

    Raises:  Died
    """
    try:
        yield
    except RuntimeError as error:
        if not _IS_OF_PEERS.search(str(error)):
            raise
        said = " ".join(str(error).split())[:_SAID]
        raise Died(
            "another process of the run has ended, or cannot be reached; --resume goes on from the last save, if there"
            f" is one ({said})"
        ) from error


def cpu_model() -> str:
    """What the machine calls its processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123  # a device of the kernel, not a file
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
