"""A run in its folder: started, stopped, resumed, refused."""

import dataclasses
import errno
import json
import math
import os
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from model import checkpoint, fingerprints, lock, run
from model.checkpoint import Checkpoint, DataConfig, Origin, RunConfig
from model.data import Dataset, with_validation
from model.errors import BadCheckpoint, BadData, BadSetting, NotANumber
from model.machine import Machine
from model.origin import origin_of
from model.training import Learner, StepReport, TrainConfig

TENSORS = ("model.safetensors", "state/training.safetensors")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, *, send: signal.Signals) -> None:
    """From now on, a learner that has made this step is sent a signal."""
    steps = Learner.run

    def interrupted(learner: Learner, images: np.ndarray) -> Iterator[StepReport]:
        for report in steps(learner, images):
            if report.step == step:
                os.kill(os.getpid(), send)
            yield report

    monkeypatch.setattr(Learner, "run", interrupted)


def test_a_run_is_its_learner_and_nothing_else(tmp_path: Path, config: RunConfig, dataset: Dataset) -> None:
    """Logging, saving and validating at every turn leaves the same bits as steps alone."""
    alone = Learner(config.model, training=config.training, n_images=30)
    list(alone.run(dataset.train))
    validated = dataclasses.replace(dataset, validation=dataset.test)
    run.train(tmp_path, run.start(tmp_path, config, dataset=dataset), validated, save_every_s=0)
    saved = run.resume(tmp_path, config)
    assert all(torch.equal(saved.state()[name], tensor) for name, tensor in alone.state().items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stop_at", [1, 4, 7])
def test_a_signal_saves_and_stops_and_the_resumed_run_is_the_one_that_never_stopped(
    tmp_path: Path,
    config: RunConfig,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
    sent: signal.Signals,
    precision: str,
) -> None:
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, precision=precision))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run.train(whole, run.start(whole, config, dataset=dataset), dataset)
    with monkeypatch.context() as patched:
        at_step(patched, stop_at, send=sent)
        outcome = run.train(stopped, run.start(stopped, config, dataset=dataset), dataset)
    assert outcome == run.Outcome(step=stop_at, steps=12, signal_number=sent)
    assert checkpoint.saved_step(stopped) == stop_at
    assert run.train(stopped, run.resume(stopped, config), dataset).step == 12
    for name in TENSORS:
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    assert [line["step"] for line in lines(stopped)] == [line["step"] for line in lines(whole)] == [4, 8, 12]


@pytest.mark.parametrize("lost", ["model.safetensors", "machine.json", "training.safetensors"])
def test_a_last_save_that_is_cut_short_loses_nothing(
    tmp_path: Path, config: RunConfig, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """A run is over once its last state is there: then its last weights have to be there too."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run.train(whole, run.start(whole, config, dataset=dataset), dataset)
    learner = run.start(cut, config, dataset=dataset)
    replace = Path.replace

    def killed(temporary: Path, path: Path) -> Path:
        if path.name == lost and learner.step == 12:
            raise KeyboardInterrupt
        return replace(temporary, path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run.train(cut, learner, dataset, save_every_s=0)
    run.train(cut, run.resume(cut, config), dataset)
    for name in TENSORS:
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_a_signal_during_the_last_save_is_heard(
    tmp_path: Path, config: RunConfig, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint.save

    def interrupted(folder: Path, learner: Learner) -> None:
        save(folder, learner)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(checkpoint, "save", interrupted)
    outcome = run.train(tmp_path, run.start(tmp_path, config, dataset=dataset), dataset, save_every_s=math.inf)
    assert outcome == run.Outcome(step=12, steps=12, signal_number=signal.SIGTERM)


def test_signals_are_the_callers_again_after_a_run(tmp_path: Path, config: RunConfig, dataset: Dataset) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run.train(tmp_path, run.start(tmp_path, config, dataset=dataset), dataset)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_ctrl_c_does_not_wait(
    tmp_path: Path, config: RunConfig, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def saved_slowly(_folder: Path, _learner: Learner) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    learner = run.start(tmp_path, config, dataset=dataset)
    at_step(monkeypatch, 2, send=signal.SIGINT)
    monkeypatch.setattr(checkpoint, "save", saved_slowly)
    # A shell that starts a job in the background has it ignore Ctrl-C, and Python leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run.train(tmp_path, learner, dataset)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("save_every_s", "saved"), [(0.0, [4, 8, 12]), (math.inf, [12])])
def test_a_run_saves_at_the_end_of_an_epoch_if_it_is_time_and_at_its_end(
    tmp_path: Path,
    config: RunConfig,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    save_every_s: float,
    saved: list[int],
) -> None:
    steps = []
    save = checkpoint.save

    def noted(folder: Path, learner: Learner) -> None:
        steps.append(learner.step)
        save(folder, learner)

    monkeypatch.setattr(checkpoint, "save", noted)
    run.train(tmp_path, run.start(tmp_path, config, dataset=dataset), dataset, save_every_s=save_every_s)
    assert steps == saved


@pytest.fixture
def long(config: RunConfig) -> tuple[RunConfig, Dataset]:
    """300 steps in two epochs, so that a line of the log comes in the middle of each."""
    train = np.random.default_rng(0).integers(0, 256, (320, 9, 6, 1), np.uint8)
    dataset = with_validation(Dataset(name="noise", train=train, test=train[:10].copy()), 20, seed=1)
    config = dataclasses.replace(
        config, training=TrainConfig(epochs=2, batch_size=2), data=DataConfig.of(dataset, validation_seed=1)
    )
    return config, dataset


def test_where_a_line_of_the_log_ends_a_kill_loses_no_step_of_it(
    tmp_path: Path, long: tuple[RunConfig, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps are saved in the middle of an epoch, and killed in the middle of a line beyond them."""
    config, dataset = long
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run.train(whole, run.start(whole, config, dataset=dataset), dataset)
    saved = []
    save = checkpoint.save

    def noted(folder: Path, learner: Learner) -> None:
        saved.append(learner.step)
        save(folder, learner)

    monkeypatch.setattr(checkpoint, "save", noted)
    for stop_at in (130, 170, 270):
        with monkeypatch.context() as patched:
            steps = Learner.run

            def cut(learner: Learner, images: np.ndarray, *, at: int = stop_at) -> Iterator[StepReport]:
                for report in steps(learner, images):  # noqa: B023  # called before the loop goes on
                    if report.step == at:
                        raise KeyboardInterrupt
                    yield report

            patched.setattr(Learner, "run", cut)
            learner = run.resume(killed, config) if saved else run.start(killed, config, dataset=dataset)
            with pytest.raises(KeyboardInterrupt):
                run.train(killed, learner, dataset, save_every_s=0)
    assert run.resume(killed, config).step == 250
    run.train(killed, run.resume(killed, config), dataset, save_every_s=0)
    assert saved == [100, 150, 250, 300]
    for name in TENSORS:
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    clock = ("seconds", "images_per_s")
    got, expected = ([{k: v for k, v in line.items() if k not in clock} for line in lines(f)] for f in (killed, whole))
    assert got == expected


def test_validation_is_measured_at_the_end_of_each_epoch_and_nowhere_else(
    tmp_path: Path, long: tuple[RunConfig, Dataset]
) -> None:
    config, dataset = long
    learner = run.start(tmp_path, config, dataset=dataset)
    run.train(tmp_path, learner, dataset)
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [100, 150, 250, 300]
    assert [line["validation"] is None for line in found] == [True, False, True, False]
    assert found[-1]["validation"] == learner.validate(dataset.validation)


def test_without_a_validation_part_there_is_none(tmp_path: Path, config: RunConfig, dataset: Dataset) -> None:
    run.train(tmp_path, run.start(tmp_path, config, dataset=dataset), dataset)
    assert [line["validation"] for line in lines(tmp_path)] == [None] * 3


def test_a_finished_run_that_is_resumed_has_nothing_left_to_do(
    tmp_path: Path, config: RunConfig, dataset: Dataset
) -> None:
    run.train(tmp_path, run.start(tmp_path, config, dataset=dataset), dataset)
    before = {name: (tmp_path / name).read_bytes() for name in (*TENSORS, "metrics.jsonl")}
    assert run.train(tmp_path, run.resume(tmp_path, config), dataset) == run.Outcome(12, 12, None)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_run_that_never_saved_is_resumed_from_its_start(tmp_path: Path, config: RunConfig, dataset: Dataset) -> None:
    run.start(tmp_path, config, dataset=dataset)
    assert run.resume(tmp_path, config).step == 0


def test_a_place_with_something_in_it_is_refused(tmp_path: Path, config: RunConfig, dataset: Dataset) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadSetting, match=r"expected a new folder$"):
        run.start(tmp_path, config, dataset=dataset)
    with pytest.raises(BadSetting, match="expected a new folder"):
        run.start(tmp_path / "notes.txt", config, dataset=dataset)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_that_failed_before_its_first_save_leaves_a_place_to_start_again_in(
    tmp_path: Path, config: RunConfig, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        nan_at(patched, 3)
        with pytest.raises(NotANumber, match="where another run may start"):
            run.train(tmp_path, run.start(tmp_path, config, dataset=dataset), dataset)
    other = dataclasses.replace(config, training=dataclasses.replace(config.training, batch_size=5))
    with lock.held(tmp_path), pytest.raises(BadSetting, match="got a run that another process is training"):
        run.start(tmp_path, other, dataset=dataset)
    assert checkpoint.read_config(tmp_path) == config
    learner = run.start(tmp_path, other, dataset=dataset)
    assert checkpoint.read_config(tmp_path) == other
    assert run.train(tmp_path, learner, dataset).step == learner.steps
    assert [line["step"] for line in lines(tmp_path)] == [6, 12, 18]


def test_a_config_of_something_else_is_not_that_of_a_run_that_failed(
    tmp_path: Path, config: RunConfig, dataset: Dataset
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "weights.bin").write_bytes(b"mine")
    with pytest.raises(BadSetting, match=r"expected a new folder, or --resume to go on$"):
        run.start(tmp_path, config, dataset=dataset)


class Elsewhere:
    """An accelerator of two processes, the other of which has read other pictures."""

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:  # noqa: ARG002  # always a sum
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        return torch.cat([tensor, 255 - tensor])


def test_processes_that_have_read_different_pictures_are_refused(
    tmp_path: Path, config: RunConfig, dataset: Dataset
) -> None:
    machine = Machine(torch.device("cpu"), processes=2, accelerator=Elsewhere())
    sentence = (
        rf"^blocks: got pictures of sha256 \w{{8}}… in process 1, expected {dataset.sha256[:8]}… as in process 0$"
    )
    with pytest.raises(BadData, match=sentence):
        run.start(tmp_path / "run", config, dataset=dataset, machine=machine)
    assert not (tmp_path / "run").exists()
    run.start(tmp_path / "run", config, dataset=dataset)
    with pytest.raises(BadData, match=sentence):
        run.resume(tmp_path / "run", config, machine=machine)


def test_a_run_that_another_process_trains_is_left_alone(tmp_path: Path, config: RunConfig, dataset: Dataset) -> None:
    learner = run.start(tmp_path, config, dataset=dataset)
    with lock.held(tmp_path), pytest.raises(BadSetting, match="got a run that another process is training"):
        run.train(tmp_path, learner, dataset)
    assert learner.step == 0
    assert run.train(tmp_path, learner, dataset).step == 12


@pytest.fixture
def trained(tmp_path: Path, config: RunConfig, dataset: Dataset) -> Checkpoint:
    """What a run of the same data has learnt, nothing of it kept back."""
    folder = tmp_path / "trained"
    run.train(folder, run.start(folder, config, dataset=dataset), dataset, has_bar=False)
    return checkpoint.read(folder)


def from_weights_of(trained: Checkpoint, config: RunConfig) -> RunConfig:
    origin = Origin(name="trained", sha256=fingerprints.of_model(trained.vae), same_test=True)
    return dataclasses.replace(config, origin=origin)


def test_a_run_starts_from_the_averaged_weights_of_another_and_is_a_checkpoint_of_them(
    tmp_path: Path, config: RunConfig, dataset: Dataset, trained: Checkpoint
) -> None:
    config = from_weights_of(trained, config)
    learner = run.start(tmp_path / "run", config, dataset=dataset, origin=trained)
    found = checkpoint.read(tmp_path / "run")
    assert found.config == config
    for vae in (learner.vae, learner.average, found.vae):
        assert all(torch.equal(vae.state_dict()[name], weight) for name, weight in trained.vae.state_dict().items())
    fresh = Learner(config.model, training=config.training, n_images=30)
    assert learner.step == 0
    assert all(torch.equal(learner.state()[name], fresh.state()[name]) for name in ("noise", "step"))


def test_a_run_that_started_from_another_is_resumed_without_it(
    tmp_path: Path, config: RunConfig, dataset: Dataset, trained: Checkpoint
) -> None:
    config = from_weights_of(trained, config)
    learner = run.start(tmp_path / "run", config, dataset=dataset, origin=trained)
    again = run.resume(tmp_path / "run", config)
    list(islice(learner.run(dataset.train), 5))
    list(islice(again.run(dataset.train), 5))
    assert all(torch.equal(again.state()[name], tensor) for name, tensor in learner.state().items())
    for origin, got in ((Origin("another", sha256="", same_test=False), "another"), (None, "None")):
        with pytest.raises(BadSetting, match=f"^start_from: got {got}, expected trained, with which "):
            run.resume(tmp_path / "run", dataclasses.replace(config, origin=origin))


def test_a_run_that_lost_the_weights_it_started_from_is_not_resumed_with_random_ones(
    tmp_path: Path, config: RunConfig, dataset: Dataset, trained: Checkpoint
) -> None:
    config = from_weights_of(trained, config)
    run.start(tmp_path / "run", config, dataset=dataset, origin=trained)
    (tmp_path / "run" / "state" / "training.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"got no state, expected at least the weights of trained$"):
        run.resume(tmp_path / "run", config)


def test_a_disk_that_is_full_at_the_start_leaves_no_run_to_resume(
    tmp_path: Path, config: RunConfig, dataset: Dataset, trained: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_folder: Path, _learner: Learner) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    config = from_weights_of(trained, config)
    with pytest.raises(OSError, match="No space left"):
        run.start(tmp_path / "run", config, dataset=dataset, origin=trained)
    with pytest.raises(BadCheckpoint, match=r"config\.json: got No such file"):
        run.resume(tmp_path / "run", config)


def test_another_model_cannot_take_the_weights(
    tmp_path: Path, config: RunConfig, dataset: Dataset, trained: Checkpoint
) -> None:
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, features=8))
    with pytest.raises(BadSetting, match=r"^features: got 8, expected 4, as the run has that it is to start from"):
        run.start(tmp_path / "run", wider, dataset=dataset, origin=trained)
    assert not (tmp_path / "run").exists()


def test_pictures_that_the_weights_have_learnt_cannot_validate_them(
    tmp_path: Path, config: RunConfig, dataset: Dataset, trained: Checkpoint
) -> None:
    split = with_validation(dataset, 10, seed=3)
    data = dataclasses.replace(config.data, n_train=20, n_validation=10, validation_seed=3, sha256=split.sha256)
    held_back = dataclasses.replace(config, data=data)
    with pytest.raises(BadSetting, match=r"^validation: got 10 pictures by seed 3, expected 0: "):
        run.start(tmp_path / "refused", held_back, dataset=split, origin=trained)
    run.start(tmp_path / "first", held_back, dataset=split)
    checkpoint.save(tmp_path / "first", run.resume(tmp_path / "first", held_back))
    first = checkpoint.read(tmp_path / "first")
    run.start(tmp_path / "same", held_back, dataset=split, origin=first)
    by_another_seed = dataclasses.replace(held_back, data=dataclasses.replace(data, validation_seed=4))
    with pytest.raises(BadSetting, match=r"^validation: got 10 pictures by seed 4, expected 0, or 10 by seed 3: "):
        run.start(tmp_path / "refused", by_another_seed, dataset=split, origin=first)
    others = dataclasses.replace(split, test=split.test[::-1])  # of another data set nothing has been learnt
    run.start(tmp_path / "others", held_back, dataset=others, origin=trained)


def begun_from(folder: Path, config: RunConfig, *, dataset: Dataset, origin: Path | None = None) -> Path:
    """A run of this data that was saved as it began, with random weights or those of another run."""
    found = checkpoint.read(origin) if origin else None
    config = dataclasses.replace(
        config,
        data=DataConfig.of(dataset, validation_seed=0),
        origin=origin_of(origin, found, dataset=dataset) if origin and found else None,
    )
    checkpoint.save(folder, run.start(folder, config, dataset=dataset, origin=found))
    return folder


def data_of(images: np.ndarray, *, n_train: int, n_validation: int = 0) -> Dataset:
    """The same test part, however many pictures train."""
    whole = Dataset(name="blocks", train=images[:n_train].copy(), test=images[30:])
    return with_validation(whole, n_validation, seed=0)


def test_pictures_drawn_by_the_same_seed_from_more_than_before_cannot_validate(
    tmp_path: Path, config: RunConfig, images: np.ndarray
) -> None:
    first = begun_from(tmp_path / "first", config, dataset=data_of(images, n_train=20, n_validation=5))
    grown = data_of(images, n_train=30, n_validation=5)
    with pytest.raises(
        BadSetting, match=r"^validation: got 5 pictures by seed 0, expected 0: from other training pict"
    ):
        begun_from(tmp_path / "refused", config, dataset=grown, origin=first)
    begun_from(tmp_path / "same", config, dataset=data_of(images, n_train=20, n_validation=5), origin=first)
    begun_from(tmp_path / "none", config, dataset=data_of(images, n_train=30), origin=first)


def test_a_validation_part_of_the_source_stays_one_where_training_pictures_were_added(
    tmp_path: Path, config: RunConfig, images: np.ndarray
) -> None:
    few, more = (Dataset(name="blocks", train=images[5:n], test=images[30:], validation=images[:5]) for n in (20, 30))
    first = begun_from(tmp_path / "first", config, dataset=few)
    begun_from(tmp_path / "second", config, dataset=more, origin=first)


def test_what_a_run_before_the_last_has_learnt_is_remembered(
    tmp_path: Path, config: RunConfig, images: np.ndarray
) -> None:
    own, others = data_of(images, n_train=30), dataclasses.replace(data_of(images, n_train=30), test=images[20:25])
    first = begun_from(tmp_path / "first", config, dataset=own)
    second = begun_from(tmp_path / "second", config, dataset=others, origin=first)
    third = begun_from(tmp_path / "third", config, dataset=others, origin=second)
    same = begun_from(tmp_path / "same", config, dataset=own, origin=first)
    again = begun_from(tmp_path / "again", config, dataset=own, origin=same)
    found = {path.name: checkpoint.read_config(path).origin for path in (second, third, same, again)}
    # The third has its test pictures in common with the second, but not with the first.
    assert {name: origin and origin.same_test for name, origin in found.items()} == {
        "second": False,
        "third": False,
        "same": True,
        "again": True,
    }
    validated = data_of(images, n_train=30, n_validation=5)
    with pytest.raises(
        BadSetting, match=r"^validation: got 5 pictures by seed 0, expected 0: from this data a run has"
    ):
        begun_from(tmp_path / "refused", config, dataset=validated, origin=third)
    begun_from(tmp_path / "unvalidated", config, dataset=own, origin=third)


def test_a_place_without_a_run_cannot_be_resumed(tmp_path: Path, config: RunConfig) -> None:
    with pytest.raises(BadCheckpoint, match=r"config\.json: got No such file or directory"):
        run.resume(tmp_path, config)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("model", "latent_dim", 4),
        ("model", "sigma", "optimal"),
        ("training", "epochs", 2),
        ("training", "epochs", 4),
        ("training", "precision", "bf16"),
        ("training", "seed", 1),
        ("data", "n_validation", 5),
        ("data", "validation_seed", 5),
    ],
)
def test_resuming_with_another_setting_is_refused(
    tmp_path: Path, config: RunConfig, dataset: Dataset, part: str, field: str, value: object
) -> None:
    run.start(tmp_path, config, dataset=dataset)
    changed = dataclasses.replace(getattr(config, part), **{field: value})
    other = dataclasses.replace(config, **{part: changed})
    was = getattr(getattr(config, part), field)
    said = f"^{field.removeprefix('n_')}: got {value}, expected {was}, with which"
    with pytest.raises(BadSetting, match=said):
        run.resume(tmp_path, other)


def test_a_run_goes_on_with_its_pictures_whatever_their_folder_is_called_and_with_no_others(
    tmp_path: Path, config: RunConfig, dataset: Dataset
) -> None:
    run.start(tmp_path, config, dataset=dataset)
    moved = dataclasses.replace(config.data, name="moved")
    assert run.resume(tmp_path, dataclasses.replace(config, data=moved)).step == 0
    other = dataclasses.replace(config.data, name="others", n_test=7, sha256="0" * 64)
    with pytest.raises(
        BadSetting, match=r"^data: got others \(\d+ pictures to train on, 7 to test with, sha256 0{8}…\), expected "
    ):
        run.resume(tmp_path, dataclasses.replace(config, data=other))


def test_another_machine_is_said_in_phrases(tmp_path: Path, config: RunConfig, dataset: Dataset) -> None:
    learner = run.start(tmp_path, config, dataset=dataset)
    assert run.changed_machine(tmp_path, learner) == []
    run.train(tmp_path, learner, dataset)
    assert run.changed_machine(tmp_path, learner) == []
    facts = learner.machine.facts()
    path = tmp_path / "state" / "machine.json"
    path.write_text(json.dumps(facts | {"threads": 64, "torch": "1.0"}))
    assert run.changed_machine(tmp_path, learner) == [
        f"torch was 1.0, is {torch.__version__}",
        f"threads was 64, is {torch.get_num_threads()}",
    ]


def nan_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """From now on, a learner that has made this step finds a weight that is no number."""
    steps = Learner.run

    def spoilt(learner: Learner, images: np.ndarray) -> Iterator[StepReport]:
        for report in steps(learner, images):
            yield report
            if report.step == step:
                with torch.no_grad():
                    learner.vae.get_parameter("decoder.pixels.bias").fill_(math.nan)

    monkeypatch.setattr(Learner, "run", spoilt)


def test_a_number_that_is_none_names_step_term_and_last_save_and_leaves_the_save_alone(
    tmp_path: Path, config: RunConfig, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = run.start(tmp_path, config, dataset=dataset)
    with monkeypatch.context() as patched:
        nan_at(patched, 10)
        with pytest.raises(NotANumber) as stopped:
            run.train(tmp_path, learner, dataset, save_every_s=0)
    sentence = "step 10: recon is nan, expected a finite number; the last save, of step 8, is whole"
    assert str(stopped.value) == sentence
    expected = Learner(config.model, training=config.training, n_images=30)
    list(islice(expected.run(dataset.train), 8))
    resumed = run.resume(tmp_path, config)
    assert all(torch.equal(resumed.state()[name], tensor) for name, tensor in expected.state().items())
    assert run.train(tmp_path, resumed, dataset).step == 12


def test_a_number_that_is_none_before_the_first_save_says_so(
    tmp_path: Path, config: RunConfig, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan_at(monkeypatch, 2)
    with pytest.raises(NotANumber, match="step 2: recon is nan, expected a finite number; nothing was saved before"):
        run.train(tmp_path, run.start(tmp_path, config, dataset=dataset), dataset)
    assert checkpoint.saved_step(tmp_path) is None


def test_a_state_from_another_kind_of_device_says_so(tmp_path: Path, config: RunConfig, dataset: Dataset) -> None:
    checkpoint.save(tmp_path, run.start(tmp_path, config, dataset=dataset))
    path = tmp_path / "state" / "training.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors | {"noise": torch.zeros(1, 16, dtype=torch.uint8)}, path)
    (tmp_path / "state" / "machine.json").write_text(json.dumps({"device": "NVIDIA H200"}))
    with pytest.raises(BadCheckpoint, match=r"got the state of a run on NVIDIA H200, expected the same kind of device"):
        run.resume(tmp_path, config)


def test_the_probe_of_a_run_comes_from_all_over_the_test_part(
    tmp_path: Path, config: RunConfig, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "PROBE_ROWS", 4)
    checkpoint.save(tmp_path, run.start(tmp_path, config, dataset=dataset))
    np.testing.assert_array_equal(checkpoint.read(tmp_path).probe, dataset.test[[0, 3, 6, 9]])


def test_a_process_that_is_not_the_main_one_writes_nothing(tmp_path: Path, config: RunConfig, dataset: Dataset) -> None:
    folder = tmp_path / "run"
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, processes=2))
    second = Machine(torch.device("cpu"), rank=1, processes=2)
    learner = run.start(folder, config, dataset=dataset, machine=second)
    run.train(folder, learner, dataset, save_every_s=0)
    assert learner.step == 12
    assert not folder.exists()
