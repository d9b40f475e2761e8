"""Frozen outputs beside their source's: what is measured, and what is refused."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from export.frozen import CannotImport, Float32, Graphs, Source, Uint8
from export.pictures import Real, real_of
from export.runs import MAX_RUN_PIXELS
from export.verify import Candidate, Measured, NotEqual, finite, measure, probe_of, require
from service.bundle import BadBundle
from service.manifest import ImageSpec, Tolerance
from tests.export.linear import noise, source
from tests.service.broken import with_constant, with_last
from tests.service.linear import Linear, OpenLinear, linear, open_linear

TOLERANCE = Tolerance(mu=1e-4, logvar=1e-4, image=1)
MODEL = linear((12, 10, 3), (4,))
OPEN = open_linear(4, default_side=16, max_side=32)


def image_of(model: Linear | OpenLinear) -> ImageSpec:
    return ImageSpec.model_validate(model.fields("linear")["image"])


def candidate_of(model: Linear | OpenLinear, **graphs: bytes | None) -> Candidate:
    made = {name: getattr(model, name)() for name in ("encoder", "decoder", "scorer")} | graphs
    latent_shape = (2, None, None) if isinstance(model, OpenLinear) else model.latent_shape
    return Candidate.of(Graphs(**made), image=image_of(model), latent_shape=latent_shape, family=model.family)


def measured(
    changed: Source | None = None,
    *,
    model: Linear | OpenLinear = MODEL,
    candidate: Candidate | None = None,
    real: Real | None = None,
    scale_head: str = "logvar",
    max_run_pixels: int = MAX_RUN_PIXELS,
) -> Measured:
    return measure(
        changed or source(model),
        candidate or candidate_of(model),
        image=image_of(model),
        real=real or real_of(None, own=noise(20, (12, 10, 3)), image=image_of(model)),
        scale_head=scale_head,
        max_run_pixels=max_run_pixels,
    )


def test_a_frozen_model_is_within_the_tolerance_of_its_source() -> None:
    found = measured()
    require(found, TOLERANCE)
    assert set(found.differences) == {"mu", "logvar", "image", "log_likelihood"}
    parity = found.parity()
    assert parity.shapes == ((1, 12, 10), (2, 12, 10), (7, 12, 10), (64, 12, 10))
    assert (parity.pictures, parity.real_pictures) == (40, 20)
    assert 0 <= parity.mu.mean <= parity.mu.max <= 1e-4


def test_runs_of_64_rows_have_64_rows_also_where_pictures_are_few() -> None:
    rows = set()

    def encode(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows.add(len(image))
        return MODEL.encode(image)

    measured(
        dataclasses.replace(source(MODEL), encode=encode),
        real=real_of(None, own=noise(3, (12, 10, 3)), image=image_of(MODEL)),
    )
    assert rows == {1, 2, 7, 64}


def test_no_run_has_more_pixels_than_the_budget() -> None:
    most = 0

    def encode(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nonlocal most
        most = max(most, image[..., 0].size)
        return MODEL.encode(image)

    found = measured(dataclasses.replace(source(MODEL), encode=encode), max_run_pixels=3 * 120)
    assert most == 2 * 120
    assert found.shapes == ((1, 12, 10), (2, 12, 10))


def test_open_sizes_are_measured_at_several() -> None:
    found = measured(model=OPEN)
    require(found, TOLERANCE)
    assert {shape[1:] for shape in found.shapes} == {(4, 4), (8, 16), (16, 16)}
    assert found.real == 0


def test_real_pictures_are_counted_over_all_sizes() -> None:
    found = measured(model=OPEN, real=lambda height, width: noise(2, (height, width, 3)))
    assert found.real == 2 * len({shape[1:] for shape in found.shapes})


def test_an_autoencoder_has_no_logvar_to_differ() -> None:
    model = dataclasses.replace(MODEL, family="autoencoder")
    found = measured(model=model)
    assert "logvar" not in found.differences
    assert found.parity().logvar is None


def test_a_source_that_cannot_score_is_measured_without() -> None:
    found = measured(source(MODEL, scores=False), candidate=candidate_of(MODEL, scorer=None))
    assert set(found.differences) == {"mu", "logvar", "image"}
    assert found.parity().log_likelihood is None


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Source:
    """The source with one of its answers changed."""
    plain = source(MODEL)

    def encode(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mu, logvar = MODEL.encode(image)
        return (change(mu), logvar) if name == "mu" else (mu, change(logvar))

    return {
        "mu": dataclasses.replace(plain, encode=encode),
        "logvar": dataclasses.replace(plain, encode=encode),
        "image": dataclasses.replace(plain, decode=lambda z: change(MODEL.decode(z))),
        "log_likelihood": dataclasses.replace(plain, score=lambda x, z: change(MODEL.log_likelihood(x, z))),
    }[name]


@pytest.mark.parametrize(
    ("name", "change", "largest"),
    [
        ("mu", lambda mu: mu + np.float32(0.5), "0.5"),
        ("logvar", lambda logvar: logvar - np.float32(0.25), "0.25"),
        ("image", lambda image: np.where(image > 127, image - 3, image + 3).astype(np.uint8), "3"),
        ("log_likelihood", lambda nats: nats * np.float32(1.01), "0.0099"),
    ],
)
def test_what_differs_stands_in_a_table_with_its_largest_mean_and_allowed_difference(
    name: str, change: Callable[[np.ndarray], np.ndarray], largest: str
) -> None:
    with pytest.raises(NotEqual) as refused:
        require(measured(changed(name, change)), TOLERANCE)
    sentence, head, *rows = str(refused.value).splitlines()
    told = sentence.removeprefix("the graphs differ from their source in ")
    assert name in told.removesuffix("; nothing was written").split(", ")
    assert head.split() == ["largest", "mean", "allowed"]
    cells = {row.split()[0]: row.split()[1:] for row in rows}
    assert set(cells) == {"mu", "logvar", "image", "log_likelihood"}
    assert cells[name][0].startswith(largest)
    assert cells[name][2:] == [f"{getattr(TOLERANCE, name):g}", "over"]


@pytest.mark.parametrize(("share", "is_equal"), [(0.9e-4, True), (1.2e-4, False)])
def test_a_mu_that_spreads_far_is_compared_by_its_spread(share: float, is_equal: bool) -> None:
    wide = dataclasses.replace(MODEL, family="autoencoder", a=MODEL.a * 100)
    exact, codes = source(wide), []

    def encode(image: np.ndarray) -> tuple[np.ndarray, None]:
        mu = wide.encode(image)[0]
        codes.append(mu.ravel())
        return mu + np.float32(share * spread), None

    spread = 1.0
    measured(dataclasses.replace(exact, encode=encode), model=wide)
    spread = float(np.concatenate(codes).std())
    assert spread > 10
    found = measured(dataclasses.replace(exact, encode=encode), model=wide)
    assert found.differences["mu"] == pytest.approx((share, share), rel=0.05)
    assert (found.differences["mu"][0] <= TOLERANCE.mu) is is_equal


@pytest.mark.parametrize("name", ["mu", "logvar", "image", "log_likelihood"])
@pytest.mark.parametrize("change", [lambda answer: answer[..., None], lambda answer: answer.astype(np.float64)])
def test_answers_of_another_shape_or_type_are_refused_before_they_are_subtracted(
    name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    with pytest.raises(
        CannotImport, match=rf"{name}: the source gives .*, the graph .*; expected equal types and shapes"
    ):
        measured(changed(name, change))


def test_a_source_that_gives_no_numbers_is_refused() -> None:
    with pytest.raises(CannotImport, match="logvar: the source gives NaN or infinity, expected numbers"):
        measured(changed("logvar", lambda logvar: logvar - np.float32(np.inf)))


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_means_of_pixels_that_are_no_numbers_are_refused_before_they_are_bytes(wrong: float) -> None:
    x_hat = torch.full((2, 3, 4, 4), 0.5)
    assert finite(x_hat) is x_hat
    x_hat[1, 2, 3, 3] = wrong
    with pytest.raises(CannotImport, match="image: the source gives NaN or infinity, expected numbers"):
        finite(x_hat)


def test_a_graph_that_gives_no_numbers_is_refused() -> None:
    broken = with_constant(MODEL.encoder(), "white", np.array(np.nan, np.float32))
    with pytest.raises(BadBundle, match=r"encoder\.onnx: .*NaN"):
        measured(candidate=candidate_of(MODEL, encoder=broken))


def test_not_a_number_is_never_equal() -> None:
    nan = Measured({"mu": (float("nan"), 0.0)}, shapes=((1, 2, 2),), pictures=1, real=0)
    with pytest.raises(NotEqual, match="in mu; nothing was written"):
        require(nan, TOLERANCE)


@pytest.mark.parametrize(("scale_head", "is_equal"), [("sigma", True), ("variance", True), ("logvar", False)])
def test_a_small_sigma_of_a_converted_head_is_compared_as_sigma(scale_head: str, is_equal: bool) -> None:
    flat = dataclasses.replace(MODEL, b=np.zeros_like(MODEL.b))  # logvar 0
    graph = with_last(flat.encoder(), "logvar", "Add", {"shift": np.array(-14.001, np.float32)})  # sigma 0.00091

    def encode(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mu, logvar = flat.encode(image)
        return mu, logvar - np.float32(14)

    found = measured(
        dataclasses.replace(source(flat), encode=encode),
        candidate=candidate_of(flat, encoder=graph),
        scale_head=scale_head,
    )
    assert (found.differences["logvar"][0] <= TOLERANCE.logvar) is is_equal


def test_a_decoder_is_measured_on_latents_of_pictures_and_of_the_prior() -> None:
    encoded, decoded = [], []
    exact = source(MODEL)

    def encode(image: Uint8) -> tuple[Float32, Float32 | None]:
        encoded.append(exact.encode(image)[0])
        return exact.encode(image)

    def decode(z: Float32) -> Uint8:
        decoded.append(z)
        return exact.decode(z)

    measured(dataclasses.replace(exact, encode=encode, decode=decode))
    is_of_picture = [
        bool((z == mu).all()) for rows in zip(decoded, encoded, strict=True) for z, mu in zip(*rows, strict=True)
    ]
    assert 0.2 < np.mean(is_of_picture) < 0.8


def test_the_probe_holds_real_pictures_and_what_the_source_makes_of_them() -> None:
    own = noise(20, (12, 10, 3))
    probe = probe_of(source(MODEL), image=image_of(MODEL), real=real_of(None, own=own, image=image_of(MODEL)))
    chosen = own[[0, 6, 13, 19]]
    mu, logvar = MODEL.encode(chosen)
    np.testing.assert_array_equal(probe.image, chosen)
    np.testing.assert_array_equal(probe.mu, mu)
    np.testing.assert_array_equal(probe.logvar, logvar)
    np.testing.assert_array_equal(probe.decoded, MODEL.decode(probe.z))
    np.testing.assert_array_equal(probe.log_likelihood, MODEL.log_likelihood(chosen, probe.z))


@pytest.mark.parametrize(("side", "rows"), [(16, 4), (128, 4), (192, 1), (512, 1)])
def test_a_probe_of_large_pictures_has_fewer(side: int, rows: int) -> None:
    model = open_linear(8, default_side=side, max_side=512)
    probe = probe_of(source(model, scores=False), image=image_of(model), real=lambda *_: None)
    assert probe.image.shape == (rows, side, side, 3)
    assert probe.log_likelihood is None
