"""A plan on disk: the same in another process, without its pictures in memory."""

import dataclasses
import mmap
from pathlib import Path

import numpy as np
import pytest

from model.data import Dataset
from model.study.plan import PLAIN, Plan, Settings, plan
from model.study.stored import load, store


@pytest.fixture
def made(dataset: Dataset) -> Plan:
    labelled = dataclasses.replace(dataset, train_labels=np.arange(30) % 3, test_labels=np.arange(10) % 3)
    return plan(labelled, Settings(sketch=20))


def is_mapped(array: np.ndarray) -> bool:
    """Whether what lies under it is a file."""
    base = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, mmap.mmap)


def test_what_is_loaded_is_what_was_stored_mapped_from_disk(made: Plan, tmp_path: Path) -> None:
    found = load(store(made, tmp_path), tmp_path)
    assert found.members == made.members
    for before, after in ((made.dataset, found.dataset), (made.sketch, found.sketch)):
        assert (after.sha256, after.labels_sha256) == (before.sha256, before.labels_sha256)
        assert np.array_equal(after.train, before.train)
        assert is_mapped(after.train)
    arrays = [part for of in (made.dataset, made.sketch) for part in vars(of).values() if isinstance(part, np.ndarray)]
    assert len([*tmp_path.iterdir()]) == len({id(array) for array in arrays}) < len(arrays)
    assert found.dataset_of(found.measured(PLAIN, 0)) is found.dataset


def test_what_is_handed_to_a_process_does_not_grow_with_the_pictures(made: Plan, tmp_path: Path) -> None:
    large = dataclasses.replace(made.dataset, train=np.zeros((30_000, 9, 6, 1), np.uint8), train_labels=None)
    assert len(store(plan(large, Settings()), tmp_path)) < 2 * len(store(made, tmp_path))


def test_what_a_process_writes_stays_with_it(made: Plan, tmp_path: Path) -> None:
    stored = store(made, tmp_path)
    load(stored, tmp_path).dataset.train[:] = 7
    assert np.array_equal(load(stored, tmp_path).dataset.train, made.dataset.train)
