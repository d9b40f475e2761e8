"""`vae-train study` as a person runs it: stopped, gone on with, extended, refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import Result
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from model import checkpoint, data, lock
from model.__main__ import app
from model.errors import Died
from model.study import runs
from model.study.claims import CLAIMS
from model.study.page import PICTURES
from model.study.plan import KINDS, PLAIN, Settings, plan
from model.training import Learner
from tests.processes import begun
from tests.waiting import until

TINY = ("--features", "2", "--latent-dim", "3", "--epochs", "2", "--batch-size", "64", "--sketch", "150")
NAMES = {f"{kind.name}-{d}" for kind in KINDS for d in (2, 3)} | {f"vae-3-sigma{sigma}" for sigma in (0.1, 0.3, 1)}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits: 200 to train on, 120 to test with."""
    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "few.npz"
    np.savez(
        path,
        x_train=images[:200],
        y_train=found.target[:200],
        x_test=images[200:320],
        y_test=found.target[200:320],
    )
    return path


def study(*arguments: object) -> Result:
    """The command in this process; its runs have processes of their own."""
    return CliRunner().invoke(app, ["study", *map(str, arguments)])


@pytest.fixture(scope="module")
def finished(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was stopped once its first run had begun, another one of which a kill has left a file of its
    beginning, and then gone on with.
    """
    folder = tmp_path_factory.mktemp("studies") / "digits"
    command = (sys.executable, "-m", "model", "study", "--data", str(few), "--out", str(folder), *TINY)
    with begun(command, stderr=subprocess.PIPE) as process:
        until(lambda: any(folder.glob("runs/*/config.json")) or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, said
    assert said.endswith("Stopped and saved. The same command goes on from there.\n")
    assert not (folder / "index.html").exists()
    killed = next(folder / "runs" / name for name in sorted(NAMES) if not (folder / "runs" / name).exists())
    killed.mkdir()
    (killed / "probe.safetensors").write_bytes(b"cut")
    done = study("--data", few, "--out", folder, *TINY)
    assert done.exit_code == 0, done.stderr
    assert "11 runs 100%" in done.stderr
    assert done.stderr.count("\r") < 10  # a log gets one a minute
    assert len(re.findall(r"^(held|reversed|not told apart|not decided):", done.stdout, flags=re.MULTILINE)) == len(
        CLAIMS
    )
    return folder


@pytest.mark.parametrize(
    ("content", "said"), [("{", "got something else ("), ("[1]", "got no seconds in it, expected")]
)
def test_what_is_no_studys_file_is_told(few: Path, tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "study.json").write_text(content)
    refused = study("--data", few, "--out", tmp_path, *TINY)
    assert refused.exit_code == 2
    assert f"{tmp_path / 'study.json'}: {said}" in refused.stderr
    assert (tmp_path / "study.json").read_text() == content


class Page(HTMLParser):
    """What a page shows and leads to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.files: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.files += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_every_run_is_a_checkpoint_with_a_card(finished: Path) -> None:
    assert {folder.name for folder in (finished / "runs").iterdir()} == NAMES
    for name in NAMES:
        found = checkpoint.read(finished / "runs" / name)
        assert found.metrics is not None
        assert (finished / "runs" / name / "card.md").exists()
        assert found.config.data.n_train == (200 if name in {f"{kind.name}-3" for kind in KINDS} else 150)


def test_a_run_of_a_study_is_an_ordinary_run(finished: Path, few: Path) -> None:
    """Stopped or not, in a process of its own or not: the same bits."""
    dataset = data.read(few)
    settings = Settings(features=2, latent_dim=3, epochs=2, batch_size=64, sketch=150)
    for member in plan(dataset, settings).members[:2]:
        learner = Learner(member.config.model, training=member.config.training, n_images=200)
        list(learner.run(dataset.train))
        stored = checkpoint.read(finished / "runs" / member.name).vae.state_dict()
        assert all(torch.equal(tensor, stored[name]) for name, tensor in learner.average.state_dict().items())


def test_the_page_has_every_picture_that_it_names_and_nothing_from_elsewhere(finished: Path) -> None:
    page = Page((finished / "index.html").read_text(encoding="utf-8"))
    assert set(page.files) == {f"pictures/{picture.name}.png" for picture in PICTURES}
    for name in [*page.files, "pictures/strip.png"]:
        with Image.open(finished / name) as picture:
            picture.load()
            assert picture.width <= 1200
    assert "http" not in page.words.replace("http://127.0.0.1:8000", "")


def test_the_page_says_every_claim_number_and_run(finished: Path) -> None:
    words = Page((finished / "index.html").read_text(encoding="utf-8")).words
    assert [claim.sentence for claim in CLAIMS if claim.sentence not in words] == []
    assert [claim.number for claim in CLAIMS if claim.number not in words] == []
    assert [picture.sentence for picture in PICTURES if picture.sentence not in words] == []
    assert [name for name in NAMES if name not in words] == []
    assert "neighbours agree" in words
    assert re.search(r"the classifier names \d+\.\d% of 120 test pictures rightly", words)


def test_programs_read_the_same(finished: Path) -> None:
    found = json.loads((finished / "study.json").read_text())
    assert [claim["claim"] for claim in found["claims"]] == [claim.sentence for claim in CLAIMS]
    metrics = checkpoint.read(finished / "runs" / "vae-3").metrics
    assert metrics is not None
    assert found["measured"]["vae"][0]["kl"] == metrics["kl"]
    assert found["measured"]["vae"][0]["rmse"] == pytest.approx(metrics["mse"] ** 0.5)
    assert found["swept"].keys() == {"0.1", "0.3", "1"}
    assert found["seconds"] > 0
    assert found["classifier"]["n"] == 120
    assert not (finished / "arrays").exists()


def test_what_is_there_is_kept_and_what_is_missing_or_of_other_weights_is_made_again(
    finished: Path, few: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    shutil.copytree(finished, folder)
    weights = {name: (folder / "runs" / name / "model.safetensors").read_bytes() for name in NAMES}
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/card.md")}
    shutil.rmtree(folder / "runs" / "vae-2")
    numbers = folder / "numbers" / "vae-3.json"
    right = json.loads(numbers.read_text())
    numbers.write_text(json.dumps({**right, "weights": "others", "numbers": {}}))
    assert study("--data", few, "--out", folder, *TINY).exit_code == 0
    assert {name: (folder / "runs" / name / "model.safetensors").read_bytes() for name in NAMES} == weights
    assert {path.parent.name for path, was in written.items() if path.stat().st_mtime_ns != was} == {"vae-2"}
    assert json.loads(numbers.read_text()) == right
    before, after = (json.loads((place / "study.json").read_text()) for place in (finished, folder))
    assert after["seconds"] > before["seconds"]
    for part in ("measured", "plane", "swept", "reference", "claims"):
        assert after[part] == before[part]


def test_other_labels_train_another_classifier_and_make_its_numbers_anew(
    finished: Path, few: Path, tmp_path: Path
) -> None:
    folder, relabelled = tmp_path / "study", tmp_path / "few.npz"
    shutil.copytree(finished, folder)
    with np.load(few) as arrays:
        known = dict(arrays)
    np.savez(relabelled, **known | {"y_train": known["y_train"] % 3, "y_test": known["y_test"] % 3})
    weights = {name: (folder / "runs" / name / "model.safetensors").read_bytes() for name in NAMES}
    assert study("--data", relabelled, "--out", folder, *TINY).exit_code == 0
    assert {name: (folder / "runs" / name / "model.safetensors").read_bytes() for name in NAMES} == weights
    before, after = (json.loads((place / "study.json").read_text()) for place in (finished, folder))
    classifiers = [(place / "classifier.safetensors").read_bytes() for place in (finished, folder)]
    assert classifiers[0] != classifiers[1]
    for part in ("measured", "reference"):
        assert after[part] != before[part]


def test_a_run_that_somebody_measured_on_other_pictures_is_measured_on_those_of_the_study_again(
    finished: Path, few: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    shutil.copytree(finished, folder)
    place = folder / "runs" / "vae-3"
    others = tmp_path / "others.npz"
    np.savez(others, images=np.round(load_digits().images * (255 / 16)).astype(np.uint8))
    measured = CliRunner().invoke(app, ["evaluate", str(place), "--data", str(others)])
    assert measured.exit_code == 0, measured.stderr
    assert not runs.is_measured_on(place, data.read(few))
    (folder / "numbers" / "vae-3.json").unlink()
    assert study("--data", few, "--out", folder, *TINY).exit_code == 0
    assert runs.is_measured_on(place, data.read(few))
    before, after = (json.loads((there / "study.json").read_text())["measured"] for there in (finished, folder))
    assert after == before


def test_a_run_that_stops_being_finite_is_named(finished: Path, few: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(finished, folder)
    (folder / "runs" / "vae-2" / "metrics.json").unlink()
    state = folder / "runs" / "vae-2" / "state" / "training.safetensors"
    tensors = safetensors.torch.load_file(state)
    tensors["step"] = torch.tensor(1)
    tensors["weights.encoder.head.bias"].fill_(torch.nan)
    safetensors.torch.save_file(tensors, state)
    failed = study("--data", few, "--out", folder, *TINY)
    assert failed.exit_code == 1
    expected = "vae-train: vae-2: step 1: recon is nan, expected a finite number; the last save, of step 1, is whole\n"
    assert failed.stderr.endswith(expected)


def test_other_settings_do_not_go_on_with_a_study(finished: Path, few: Path) -> None:
    refused = study("--data", few, "--out", finished, *TINY, "--epochs", 3)
    assert refused.exit_code == 2
    assert re.fullmatch(
        r"vae-train: epochs: got 3, expected 2, with which \S+ was started\n", refused.stderr.replace("\r", "")
    )


def test_a_folder_that_is_no_study_is_left_alone(tmp_path: Path, few: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    refused = study("--data", few, "--out", tmp_path, *TINY)
    assert refused.exit_code == 2
    assert refused.stderr == (
        f"vae-train: {tmp_path}: got a place with something else in it, expected a new folder or a study to go on\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_wrong_setting_is_one_sentence(tmp_path: Path, few: Path) -> None:
    refused = study("--data", few, "--out", tmp_path / "study", "--latent-dim", 2)
    assert refused.exit_code == 2
    assert refused.stderr == (
        "vae-train: latent_dim: got 2, expected more than 2: a plane is trained anyway, to be seen\n"
    )
    assert not (tmp_path / "study").exists()


def test_a_batch_of_nothing_is_one_sentence(tmp_path: Path, few: Path) -> None:
    refused = study("--data", few, "--out", tmp_path / "study", "--batch-size", 0)
    assert refused.exit_code == 2
    assert refused.stderr == "vae-train: batch_size: got 0, expected a whole number from 1\n"


def test_what_was_found_stays_where_a_finished_study_is_stopped_again(
    finished: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "study"
    shutil.copytree(finished, folder)
    before = json.loads((folder / "study.json").read_text())
    monkeypatch.setattr(runs.Work, "train", lambda _work: signal.SIGINT)
    assert study("--data", few, "--out", folder, *TINY).exit_code == 128 + signal.SIGINT
    after = json.loads((folder / "study.json").read_text())
    assert after.pop("seconds") >= before.pop("seconds")
    assert after == before


@pytest.fixture
def work(few: Path, tmp_path: Path) -> runs.Work:
    return runs.Work(plan(data.read(few), Settings(latent_dim=3)), folder=tmp_path, device="cpu")


def test_a_process_that_dies_is_said_in_a_sentence(work: runs.Work) -> None:
    with work, pytest.raises(Died) as died:
        work.do([partial(os._exit, 9)])
    expected = "a process of the study ended without a word, perhaps for want of memory; the same command goes on"
    assert str(died.value) == expected


def test_what_a_job_raises_reaches_whoever_asked(work: runs.Work) -> None:
    threads = os.environ.get("OMP_NUM_THREADS")
    with work, pytest.raises(ValueError, match="invalid literal"):
        work.do([partial(int, "x"), partial(int, "3")])
    assert os.environ.get("OMP_NUM_THREADS") == threads


def test_a_run_is_trained_at_its_last_step_and_measured_by_figures_of_those_weights(
    finished: Path, few: Path, tmp_path: Path
) -> None:
    settings = Settings(features=2, latent_dim=3, epochs=2, batch_size=64, sketch=150)
    dataset = data.read(few)
    member = plan(dataset, settings).measured(PLAIN, 0)
    place = tmp_path / "run"
    shutil.copytree(finished / "runs" / "vae-3", place)
    assert runs.is_trained(place, member)
    assert runs.is_measured_on(place, dataset)
    weights = safetensors.torch.load_file(place / "model.safetensors")
    weights["encoder.head.bias"] += 1
    safetensors.torch.save_file(weights, place / "model.safetensors")
    assert not runs.is_measured_on(place, dataset)
    (place / "metrics.json").unlink()
    assert not runs.is_measured_on(place, dataset)
    state = place / "state" / "training.safetensors"
    tensors = safetensors.torch.load_file(state)
    safetensors.torch.save_file(tensors | {"step": tensors["step"] - 1}, state)
    assert not runs.is_trained(place, member)


def test_a_study_that_another_process_is_making_is_refused_and_left_alone(
    finished: Path, few: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    shutil.copytree(finished, folder)
    before = (folder / "study.json").read_bytes()
    with lock.held(folder):
        refused = study("--data", few, "--out", folder, *TINY)
    assert refused.exit_code == 2
    assert refused.stderr == (
        f"vae-train: {folder}: got a study that another process is making, expected one that none is;"
        " wait for it, or stop it\n"
    )
    assert (folder / "study.json").read_bytes() == before


def test_the_processes_of_a_study_save_and_end_where_their_parent_is_killed(few: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    command = (sys.executable, "-m", "model", "study", "--data", str(few), "--out", str(folder), *TINY)
    with begun((*command, "--epochs", "100000"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        until(lambda: any(folder.glob("runs/*/metrics.jsonl")) or process.poll() is not None)
        process.kill()
        process.communicate(timeout=60)  # comes to its end once the last process that writes there has
    trained = [run.parent for run in folder.glob("runs/*/config.json")]
    assert trained
    for run in trained:
        lock.require_idle(run)
    assert any(checkpoint.saved_step(run) for run in trained)
