"""What was measured is kept, and a run of a part takes nothing away from what a whole one has kept."""

import json
import platform
from pathlib import Path

import pytest

from benchmarks import results


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    return tmp_path / "results"


def test_figures_are_kept_with_the_machine_and_those_of_the_next_run_in_their_place(folder: Path) -> None:
    for figure in (1, 2):
        assert results.keep("start", {"ready_s": figure}) == "Kept in start.json"
        document = json.loads((folder / "start.json").read_text())
        assert document == {"machine": results.machine(), "ready_s": figure}


def test_a_processor_is_told_from_others_that_go_by_its_name() -> None:
    cpuinfo = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n"
    of_two_cores = f"{cpuinfo}\n{cpuinfo.replace('17', '18')}"
    assert results.cpu(of_two_cores) == "AMD EPYC (family 25, model 17)"


def test_a_processor_without_a_family_is_told_by_its_name() -> None:
    assert results.cpu("processor\t: 0\nmodel name\t: ARMv7 Processor rev 3 (v7l)\n") == "ARMv7 Processor rev 3 (v7l)"


def test_a_processor_without_a_name_is_told_by_its_architecture() -> None:
    assert results.cpu("processor\t: 0\nCPU architecture: 8\n") == platform.machine()


def test_a_run_of_a_part_leaves_what_is_kept_as_it_is(folder: Path) -> None:
    results.keep("nll", {"mlp": 1, "residual": 2})
    before = (folder / "nll.json").read_bytes()
    told = results.keep("nll", {}, lacks={"residual", "mlp"})
    assert told == "Not kept without mlp, residual: nll.json is as it was"
    assert (folder / "nll.json").read_bytes() == before


def test_a_run_of_a_part_is_kept_where_there_is_nothing_yet(folder: Path) -> None:
    assert results.keep("nll", {"mlp": 1}, lacks=["residual"]) == "Kept in nll.json"
