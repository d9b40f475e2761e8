"""Processes that stop with one sentence instead of serving."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from service.manifest import DECODER, ENCODER, MANIFEST, SCORER
from tests.service.broken import (
    copied,
    edit_manifest,
    flip_byte,
    made,
    with_claim,
    with_constant,
    with_external,
    with_last,
    zipped,
)
from tests.service.devices import NO_CUDA
from tests.service.linear import Bundles, Linear
from tests.service.refusals import of_four_rows, with_graph
from tests.serving import stopped


def test_a_process_with_a_changed_graph_stops_with_one_sentence(tmp_path: Path, bundles: Bundles) -> None:
    folder = copied(bundles.colour, tmp_path / "colour")
    flip_byte(folder / ENCODER)
    assert stopped(str(folder)).startswith(f"{folder / ENCODER}: sha256 is ")


def wrong_zip(folder: Path, colour: Linear, *, claim: bool) -> tuple[Path, str]:
    """A zip that claims three gigabytes, or one that was cut, and how its sentence begins."""
    path = zipped(made(folder, colour), folder.with_suffix(".zip"))
    if claim:
        with_claim(path, ENCODER, size=3_000_000_000)
        return path, f"{path / ENCODER}: claims 3000000000 bytes in "
    path.write_bytes(path.read_bytes()[:-1000])
    return path, f"{path}: File is not a zip file, expected a bundle, which is a folder or one zip"


def wrong_graph(folder: Path, colour: Linear, *, domain: str = "", operator: str = "") -> tuple[Path, str]:
    """A bundle whose decoder has one operator more, and how its sentence begins."""
    graph = with_last(colour.decoder(), "image", operator, {}, domain=domain)
    return made(folder, colour, decoder=graph), f"{folder / DECODER}: "


def wrong_scorer(folder: Path, colour: Linear) -> tuple[Path, str]:
    """A scorer that wants bytes from outside the bundle."""
    place = {"location": "../../etc/passwd", "offset": 0, "length": 4}
    path = with_graph(folder, colour, SCORER, lambda graph: with_external(graph, "half", place))
    return path, f"{path / SCORER}: tensor 'half' lies in '../../etc/passwd', expected it in "


def wrong_weight(folder: Path, colour: Linear) -> tuple[Path, str]:
    graph = with_constant(colour.encoder(), "a", np.full_like(colour.a, np.nan))
    return made(folder, colour, encoder=graph), f"{folder / ENCODER}: tensor 'a' holds NaN, expected numbers"


def wrong_number(folder: Path, colour: Linear) -> tuple[Path, str]:
    path = made(folder, colour)
    edit_manifest(path, lambda plain: plain["image"].update(width=4))
    return path, f"{path / MANIFEST}: digest is "


@pytest.mark.parametrize(
    "wrong",
    [
        partial(wrong_zip, claim=True),
        partial(wrong_zip, claim=False),
        partial(wrong_graph, operator="RandomNormalLike"),
        partial(wrong_graph, operator="Gelu", domain="com.microsoft"),
        wrong_scorer,
        wrong_weight,
        wrong_number,
    ],
    ids=["three gigabytes", "truncated", "noise", "another domain", "outside", "NaN", "one wrong number"],
)
def test_a_process_with_a_wrong_bundle_stops_with_one_sentence(
    tmp_path: Path, colour: Linear, wrong: Callable[..., tuple[Path, str]]
) -> None:
    path, sentence = wrong(tmp_path / "b", colour)
    assert stopped(str(path)).startswith(sentence)


def test_one_wrong_bundle_among_right_ones_stops_the_process(tmp_path: Path, bundles: Bundles) -> None:
    folder = copied(bundles.colour, tmp_path / "second")
    edit_manifest(folder, lambda plain: plain.update(name="second", format=2))
    said = stopped(str(bundles.grey), str(folder))
    assert said == f"{folder / MANIFEST}: format is 2, this version reads format 1"


def test_a_process_with_a_graph_that_fails_on_some_batch_stops_with_one_sentence(
    tmp_path: Path, colour: Linear
) -> None:
    folder = made(tmp_path / "b", colour, decoder=of_four_rows(colour))
    assert stopped(str(folder)).startswith(f"{folder / DECODER}: fails on 1 rows (")


def test_a_process_with_a_wrong_probe_stops_with_one_sentence(tmp_path: Path, colour: Linear) -> None:
    probe = colour.probe()
    folder = made(tmp_path / "b", colour, probe=replace(probe, mu=probe.mu + 1))
    assert stopped(str(folder)) == f"{folder / ENCODER}: mu differs from the probe by 1, the tolerance is 0.0001"


@pytest.mark.skipif(not NO_CUDA, reason="this onnxruntime has CUDA")
def test_a_process_that_cannot_have_its_device_stops_with_one_sentence(bundles: Bundles) -> None:
    assert stopped(str(bundles.colour), "--device", "cuda").startswith("device cuda: the installed onnxruntime has no")


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        (["--max-batch-rows", "1"], {}, "max_batch_rows: got 1, input should be greater than or equal to 2"),
        (["--device", "tpu"], {}, "device: got 'tpu', input should be 'auto', 'cpu' or 'cuda'"),
        ([], {"VAE_THREADS": "-1"}, "threads: got '-1', input should be greater than or equal to 0"),
        ([], {"VAE_HOST": ""}, "host: got '', string should have at least 1 character"),  # as of ${HOST}, not set
    ],
)
def test_a_setting_that_cannot_be_stops_the_process_with_one_sentence(
    bundles: Bundles, arguments: list[str], environment: dict[str, str], sentence: str
) -> None:
    assert stopped(str(bundles.colour), *arguments, environment=environment) == sentence
