import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from export.checkpoint import TOLERANCE, source_of
from export.graphs import freeze
from export.verify import BATCH_ROWS, NotEqual, Source, measure, probe_of, require
from model.vae import VAE, ModelConfig
from service.bundle import Difference, Parity
from service.engine import Graph, decoder_signature, encoder_signature

SHAPE = (12, 10, 3)
PICTURES = np.random.default_rng(3).integers(0, 256, (20, *SHAPE), dtype=np.uint8)


@pytest.fixture(scope="module")
def frozen() -> tuple[Source, Graph, Graph]:
    torch.manual_seed(1)
    vae = VAE(ModelConfig(height=12, width=10, channels=3, latent_dim=4, features=8)).eval()
    graphs = freeze(vae)
    encoder = Graph(graphs.encoder, encoder_signature(SHAPE, (4,)), path=Path("e"), device="cpu", threads=1)
    decoder = Graph(graphs.decoder, decoder_signature(SHAPE, (4,)), path=Path("d"), device="cpu", threads=1)
    return source_of(vae), encoder, decoder


def test_a_frozen_model_is_within_the_tolerance_of_its_source(frozen: tuple[Source, Graph, Graph]) -> None:
    source, encoder, decoder = frozen
    parity = measure(source, encoder, decoder, pictures=PICTURES)
    require(parity, TOLERANCE)
    assert parity.batch_rows == BATCH_ROWS == (1, 2, 7, 64)
    assert parity.pictures == 40
    assert 0 <= parity.mu.mean <= parity.mu.max <= 1e-4


@pytest.mark.parametrize(("output", "by", "told"), [("mu", 0.5, "mu by 0.5"), ("logvar", -0.25, "logvar by 0.25")])
def test_a_source_that_differs_is_measured_and_named(
    frozen: tuple[Source, Graph, Graph], output: str, by: float, told: str
) -> None:
    source, encoder, decoder = frozen

    def encode(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mu, logvar = source.encode(image)
        return (mu + np.float32(by), logvar) if output == "mu" else (mu, logvar + np.float32(by))

    parity = measure(dataclasses.replace(source, encode=encode), encoder, decoder, pictures=PICTURES)
    with pytest.raises(NotEqual, match=told):
        require(parity, TOLERANCE)


def test_pictures_that_differ_are_counted_in_grey_levels(frozen: tuple[Source, Graph, Graph]) -> None:
    source, encoder, decoder = frozen
    darker = dataclasses.replace(source, decode=lambda z: source.decode(z) - np.uint8(3))
    parity = measure(darker, encoder, decoder, pictures=PICTURES)
    assert parity.image.max == 3
    with pytest.raises(NotEqual, match=r"image by 3 where 1 is allowed; nothing was written"):
        require(parity, TOLERANCE)


def test_not_a_number_is_never_equal() -> None:
    none, nan = Difference(max=0, mean=0), Difference.model_construct(max=float("nan"), mean=0.0)
    with pytest.raises(NotEqual, match="mu by nan"):
        require(Parity.model_construct(mu=nan, logvar=none, image=none, batch_rows=(1,), pictures=1), TOLERANCE)


def test_the_probe_holds_what_the_source_makes_of_its_inputs(frozen: tuple[Source, Graph, Graph]) -> None:
    source, _, _ = frozen
    probe = probe_of(source, PICTURES[:4])
    np.testing.assert_array_equal(probe.mu, source.encode(PICTURES[:4])[0])
    np.testing.assert_array_equal(probe.decoded, source.decode(probe.z))
