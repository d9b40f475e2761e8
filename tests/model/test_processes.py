"""Runs of two processes: what each works on, what both agree on, and how they stop, resume and are refused.

`torchrun --nproc_per_node 2 -m tests.model.test_processes FOLDER` is what one of these tests starts.
"""

import atexit
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
from torch import Tensor

from model.machine import Machine, join
from model.training import Learner, TrainConfig
from model.vae import ModelConfig
from tests.processes import begun
from tests.waiting import until

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
TORCHRUN = (str(BIN / "torchrun"), "--nproc_per_node", "2")
STATE = "state/training.safetensors"

# Epochs of 8, 8, 8 and 1 picture: of the last batch one process has nothing.
N_IMAGES = 25
TRAINING = TrainConfig(epochs=3, batch_size=8, lr_warmup_steps=2, kl_warmup_epochs=1.0, processes=2)
VAE = ModelConfig(9, 6, 1, latent_dim=3, features=4)
POINT = dataclasses.replace(VAE, family="autoencoder")
# Where noise moves nothing, two processes compute what one does.
WITHOUT_NOISE = {
    "autoencoder": (POINT, TRAINING),
    "mlp": (dataclasses.replace(POINT, preset="mlp"), dataclasses.replace(TRAINING, weight_decay=0.5)),
    "accumulate": (POINT, dataclasses.replace(TRAINING, accumulate=2)),
    "narrow": (dataclasses.replace(VAE, logvar_range=(-80.0, -79.0)), TRAINING),
}
WITH_NOISE = {
    "vae": (VAE, dataclasses.replace(TRAINING, epochs=20)),
    "optimal": (dataclasses.replace(VAE, sigma="optimal"), TRAINING),
    "bernoulli": (dataclasses.replace(VAE, likelihood="bernoulli", sigma=None), TRAINING),
    "residual": (dataclasses.replace(VAE, preset="residual", sigma="learned"), TRAINING),
    "bf16": (VAE, dataclasses.replace(TRAINING, precision="bf16")),
    "iw": (VAE, dataclasses.replace(TRAINING, iw_samples=3, iw_epochs=1.0)),
}
CASES = WITHOUT_NOISE | WITH_NOISE
# In the middle of an epoch, and before the batch that is too small for two.
STOPS = (1, 3, 6)


def pictures() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (N_IMAGES, 9, 6, 1), np.uint8)


def learner(model: ModelConfig, training: TrainConfig, *, machine: Machine | None = None) -> Learner:
    return Learner(model, training=training, n_images=N_IMAGES, machine=machine)


def resumed(model: ModelConfig, training: TrainConfig, *, machine: Machine) -> Learner:
    """A run that was stopped at each of STOPS, and went on in a new learner."""
    run = learner(model, training, machine=machine)
    for stop_at in STOPS:
        list(islice(run.run(pictures()), stop_at - run.step))
        state = {name: tensor.clone() for name, tensor in run.state().items()}
        run = learner(model, training, machine=machine)
        run.load_state(state)
    list(run.run(pictures()))
    return run


def note_the_group(path: Path) -> None:
    """Whether this process is still in a group when its interpreter has come to its end."""
    path.write_text(json.dumps(torch.distributed.is_initialized()))


def work(folder: Path) -> None:
    """One rank of two: all cases, what each ended as and the elbo of its steps, in files of this rank."""
    atexit.register(note_the_group, folder / f"group{os.environ['RANK']}.json")
    machine = join("cpu", processes=2)
    tensors: dict[str, Tensor] = {}
    curves = {}
    for name, (model, training) in CASES.items():
        run = learner(model, training, machine=machine)
        curves[name] = [report.elbo for report in run.run(pictures())]
        ends = {"whole": run, "resumed": resumed(model, training, machine=machine)}
        for end, of in ends.items():
            tensors |= {f"{name}/{end}/{key}": tensor.contiguous().clone() for key, tensor in of.state().items()}
    safetensors.torch.save_file(tensors, folder / f"rank{machine.rank}.safetensors")
    (folder / f"rank{machine.rank}.json").write_text(json.dumps(curves))


class Ended:
    """What two ranks left."""

    def __init__(self, folder: Path) -> None:
        self.tensors = [safetensors.torch.load_file(folder / f"rank{rank}.safetensors") for rank in range(2)]
        self.curves = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
        self.in_group = [json.loads((folder / f"group{rank}.json").read_text()) for rank in range(2)]

    def state(self, case: str, *, end: str, rank: int) -> dict[str, Tensor]:
        prefix = f"{case}/{end}/"
        found = self.tensors[rank]
        return {name.removeprefix(prefix): found[name] for name in found if name.startswith(prefix)}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder = tmp_path_factory.mktemp("ranks")
    command = (*TORCHRUN, "-m", "tests.model.test_processes", str(folder))
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return Ended(folder)


@pytest.mark.parametrize("case", CASES)
def test_both_ranks_have_the_same_weights_average_and_optimiser_bit_for_bit(ended: Ended, case: str) -> None:
    first, second = (ended.state(case, end="whole", rank=rank) for rank in range(2))
    assert first.keys() == second.keys()
    assert all(first[name].numpy().tobytes() == second[name].numpy().tobytes() for name in first)
    assert ended.curves[0] == ended.curves[1]


@pytest.mark.parametrize("case", WITHOUT_NOISE)
def test_two_processes_train_what_one_does(ended: Ended, case: str) -> None:
    """To 1e-5: sums over two halves round otherwise than sums over a whole."""
    model, training = CASES[case]
    alone = learner(model, dataclasses.replace(training, processes=1))
    curve = [report.elbo for report in alone.run(pictures())]
    assert ended.curves[0][case] == pytest.approx(curve, rel=1e-5)
    together = ended.state(case, end="whole", rank=0)
    for name, tensor in alone.state().items():
        if name.startswith(("weights.", "average.")):
            assert (tensor - together[name]).abs().max() < 1e-5, name


def test_with_noise_of_their_own_they_learn_as_one_does(ended: Ended) -> None:
    """Other draws, the same curve: the elbo of the last ten epochs agrees within 2 %."""
    model, training = CASES["vae"]
    alone = learner(model, dataclasses.replace(training, processes=1))
    curve = [report.elbo for report in alone.run(pictures())]
    assert np.mean(ended.curves[0]["vae"][40:]) == pytest.approx(np.mean(curve[40:]), rel=0.02)
    assert ended.curves[0]["vae"] != curve


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_of_two_equals_an_uninterrupted_one(ended: Ended, case: str) -> None:
    """To 1e-6, which is what is promised where processes exchange sums."""
    whole, again = (ended.state(case, end=end, rank=0) for end in ("whole", "resumed"))
    assert whole.keys() == again.keys()
    for name, tensor in whole.items():
        assert (tensor.double() - again[name].double()).abs().max() <= 1e-6, name


def test_a_process_leaves_the_group_before_its_interpreter_ends(ended: Ended) -> None:
    """Threads of the group that run on into that end may abort the process, now and then."""
    assert ended.in_group == [False, False]


def fit(out: Path, *arguments: str) -> tuple[str, ...]:
    return ("-m", "model", "fit", "--out", str(out), "--device", "cpu", "--processes", "2", *arguments)


def test_a_run_of_two_stops_at_a_signal_and_resumes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    # More than the fastest machine trains before torchrun has passed the signal on.
    settings = ("--features", "4", "--epochs", "60", "--batch-size", "128", "--save-every", "0")
    with begun((*TORCHRUN, *fit(out, *settings)), cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE) as process:
        until(lambda: (out / STATE).exists() or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    stopped_at = re.search(r"Stopped and saved at step (\d+) of 780\.", said)
    assert stopped_at, said
    assert 13 <= int(stopped_at[1]) < 780
    assert int(safetensors.torch.load_file(out / STATE)["step"]) == int(stopped_at[1])

    command = (*TORCHRUN, *fit(out, *settings, "--resume"))
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test images of digits") == 1
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(13, 781, 13))
    assert json.loads((out / "state" / "machine.json").read_text())["processes"] == 2


def children(pid: int) -> list[int]:
    """Processes that a process has begun."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it may end meanwhile
            text = stat.read_text()
            if int(text.rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return sorted(found)


def test_a_process_whose_neighbour_was_killed_says_so_and_ends(tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = ("--features", "4", "--epochs", "2000", "--batch-size", "128", "--save-every", "0")
    with begun((*TORCHRUN, *fit(out, *settings)), cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE) as process:
        until(lambda: (out / STATE).exists() or process.poll() is not None)
        os.kill(children(process.pid)[-1], signal.SIGKILL)
        _, said = process.communicate(timeout=90)
    assert process.returncode != 0
    assert (
        "vae-train: another process of the run has ended, or cannot be reached; --resume goes on from the last" in said
    )
    assert safetensors.torch.load_file(out / STATE)


def test_fewer_processes_than_asked_for_end_with_a_sentence(tmp_path: Path) -> None:
    """Accelerate's launcher is asked for two on a CPU, starts one and says nothing."""
    command = (str(BIN / "accelerate"), "launch", "--cpu", "--num_processes", "2", *fit(tmp_path / "run"))
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "returned non-zero exit status 2" in done.stderr
    assert (
        "vae-train: processes: got 1 of them started, expected 2; start them with"
        " `torchrun --nproc_per_node 2 -m model fit … --processes 2`" in done.stderr
    )
    assert not (tmp_path / "run").exists()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
