"""Where a run computes: what is refused, what processes tell each other, and settings that come back."""

from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from model.errors import BadSetting, Died
from model.machine import Machine, deterministic, exact_convolutions, join

CPU = torch.device("cpu")


class Broken:
    """An accelerator whose exchanges fail."""

    def __init__(self, said: str) -> None:
        self.said = said

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:  # noqa: ARG002  # none comes about
        raise RuntimeError(self.said)


class Twin:
    """An accelerator of two processes, the other one holding the same as this one."""

    def __init__(self) -> None:
        self.exchanges = 0

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum"
        self.exchanges += 1
        return 2 * tensor

    def gather(self, tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor])


@pytest.fixture(autouse=True)
def _started_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_one_process_on_a_cpu_needs_nobody() -> None:
    machine = join("cpu", processes=1)
    assert machine == Machine(CPU, rank=0, processes=1, accelerator=None)
    assert machine.is_main


def test_a_device_that_no_one_knows_is_refused() -> None:
    with pytest.raises(BadSetting, match="device: got 'tpu', expected one of auto, cpu, cuda"):
        join("tpu", processes=1)


def test_a_gpu_that_is_not_there_is_refused_and_auto_takes_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BadSetting, match="device: got cuda, expected a GPU that torch can use; this torch sees none"):
        join("cuda", processes=1)
    assert join("auto", processes=1).device == CPU


def test_auto_takes_a_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert join("auto", processes=1).device.type == "cuda"
    assert join("cpu", processes=1).device == CPU


@pytest.mark.parametrize(("started", "asked"), [(None, 2), ("1", 2), ("2", 1), ("3", 2)])
def test_another_number_of_processes_than_asked_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, started: str | None, asked: int
) -> None:
    if started is not None:
        monkeypatch.setenv("WORLD_SIZE", started)
    how = f"start them with `torchrun --nproc_per_node {asked} -m model fit … --processes {asked}`"
    with pytest.raises(BadSetting) as refused:
        join("cpu", processes=asked)
    assert str(refused.value) == f"processes: got {started or 1} of them started, expected {asked}; {how}"


@pytest.mark.parametrize(("here", "told"), [("2", 2), (None, 4)], ids=["of two machines", "alone"])
def test_more_processes_than_a_machine_has_gpus_are_refused(
    monkeypatch: pytest.MonkeyPatch, here: str | None, told: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if here is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    expected = f"processes: got {told} on this machine, expected at most 1, one for each GPU it has"
    with pytest.raises(BadSetting, match=expected):
        join("cuda", processes=4)


@pytest.mark.parametrize("was", [True, False])
def test_convolutions_are_exact_for_a_while(monkeypatch: pytest.MonkeyPatch, was: bool) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", was)
    with exact_convolutions():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == was
    with pytest.raises(KeyError), exact_convolutions():
        raise KeyError
    assert torch.backends.cudnn.allow_tf32 == was


def test_alone_a_sum_is_the_tensor_itself_and_a_gathering_has_one_row() -> None:
    machine = Machine(CPU)
    first, second = torch.arange(3.0), torch.tensor(5.0)
    assert all(map(torch.equal, machine.summed([first, second]), [first, second]))
    assert torch.equal(machine.gathered(first), first.unsqueeze(0))
    assert machine.any(said=True)
    assert not machine.any(said=False)


def test_all_tensors_are_summed_in_one_exchange_and_keep_their_shapes() -> None:
    twin = Twin()
    machine = Machine(CPU, rank=1, processes=2, accelerator=twin)
    tensors = [torch.randn(2, 3), torch.tensor(5.0), torch.randn(4, 1, 2).transpose(0, 2)]
    for got, tensor in zip(machine.summed(tensors), tensors, strict=True):
        assert torch.equal(got, 2 * tensor)
    assert twin.exchanges == 1
    assert machine.gathered(torch.arange(3, dtype=torch.uint8)).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert machine.any(said=True)
    assert not machine.any(said=False)
    assert not machine.is_main


def test_an_exchange_that_fails_tells_why() -> None:
    said = "NCCL error in: NCCLUtils.cpp:77, invalid usage\nLast error:\nDuplicate GPU detected : rank 1 and rank 0\n"
    machine = Machine(CPU, processes=2, accelerator=Broken(said + "frame #0: somewhere\n" * 100))
    with pytest.raises(
        Died, match=r"^another process of the run has ended, or cannot be reached; --resume goes on"
    ) as died:
        machine.any(said=True)
    assert "(NCCL error in: NCCLUtils.cpp:77, invalid usage Last error: Duplicate GPU detected" in str(died.value)
    assert len(str(died.value)) < 600
    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        Machine(CPU, processes=2, accelerator=Broken("out of memory")).any(said=True)


def test_processes_wait_longer_for_each_other_than_a_validation_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = []

    class Accelerator(Twin):
        num_processes, process_index, device = 2, 1, CPU

        def __init__(self, *, cpu: bool, kwargs_handlers: list[Any]) -> None:
            super().__init__()
            assert cpu
            handlers.extend(kwargs_handlers)

        def end_training(self) -> None:
            pass

    monkeypatch.setattr("accelerate.Accelerator", Accelerator)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert join("cpu", processes=2).rank == 1
    assert handlers[0].to_kwargs() == {"timeout": timedelta(hours=6)}


def test_the_facts_are_what_last_digits_hang_on() -> None:
    facts = Machine(CPU, processes=1).facts()
    assert facts.keys() == {"torch", "device", "threads", "processes"}
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["device"]
    assert facts["device"].isprintable()


@pytest.fixture(params=[0, 1, 2], ids=["off", "warn", "error"])
def mode(request: pytest.FixtureRequest) -> Iterator[int]:
    """What the caller has asked torch for."""
    were = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode(request.param)
    yield request.param
    torch.set_deterministic_debug_mode(were)


def test_the_callers_determinism_comes_back_also_after_an_error(mode: int) -> None:
    inside = []

    def fail() -> None:
        with deterministic(Machine(CPU)):
            inside.append(torch.get_deterministic_debug_mode())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside == [2]
    assert torch.get_deterministic_debug_mode() == mode
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_a_gpu_is_left_as_it_is(mode: int) -> None:
    with deterministic(Machine(torch.device("cuda"))):
        assert torch.get_deterministic_debug_mode() == mode


def test_a_sum_on_a_cpu_has_the_same_bits_each_time() -> None:
    """Scattered addition is where bits differ from run to run without deterministic algorithms."""
    rows = torch.randint(10, (100_000,), generator=torch.Generator().manual_seed(0))
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    with deterministic(Machine(CPU)):
        sums = [torch.zeros(10).index_add_(0, rows, values) for _ in range(5)]
    assert all(torch.equal(one, other) for one, other in pairwise(sums))


def test_memory_is_not_filled_meanwhile() -> None:
    with deterministic(Machine(CPU)):
        assert not torch.utils.deterministic.fill_uninitialized_memory
