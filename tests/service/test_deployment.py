"""What a process serves with, of all that its settings name."""

from pathlib import Path

import pytest

from service.app import create_app
from service.bundle import BadBundle
from service.deployment import deploy
from service.observation import tally
from service.observation.metrics import Metrics
from service.observation.tally import Tally
from service.settings import Settings
from tests.service.linear import Bundles, Linear, fitted_prior, linear, write_linear


def test_two_bundles_of_one_name_are_refused(tmp_path: Path, bundles: Bundles, grey: Linear) -> None:
    write_linear(tmp_path / "other", grey, name="colour")
    with pytest.raises(BadBundle, match=f"{tmp_path / 'other'}: a model named colour is loaded already"):
        deploy(Settings(bundles=(bundles.colour, tmp_path / "other")), metrics=Metrics())


@pytest.mark.parametrize(
    ("places", "device", "lent"), [(2, "cpu", True), (1, "cpu", False), (2, "cuda", False)], ids=str
)
def test_processes_lend_each_other_cores_where_there_are_several_and_graphs_run_on_them(
    bundles: Bundles, monkeypatch: pytest.MonkeyPatch, places: int, device: str, lent: bool
) -> None:
    """No GPU is needed: the graphs run where they can, and only the lane is told of another device."""
    monkeypatch.setattr("service.deployment.resolve_device", lambda _asked: device)
    monkeypatch.setattr("service.deployment.available_cores", lambda: 6)
    metrics = Metrics(tally=Tally(tally.shared(places)))
    lane = deploy(Settings(bundles=(bundles.colour,), device="cpu"), cores=2, metrics=metrics).lane
    assert lane.machine_cores == (6 if lent else 2)
    lane.close()


def test_a_fitted_prior_over_other_latents_stops_the_process(tmp_path: Path) -> None:
    write_linear(tmp_path / "model", linear(), fitted=fitted_prior(5))
    expected = r"model/prior.safetensors: means is float32 \(3, 5\), expected float32 \(3, 4\)$"
    with pytest.raises(BadBundle, match=expected):
        create_app(Settings(bundles=(tmp_path / "model",)))
