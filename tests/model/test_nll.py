import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from model import nll
from model.errors import BadCheckpoint, BadSetting, NotANumber
from model.gaussian import DiagonalGaussian, standard_log_prob
from model.pixels import pixels
from model.vae import VAE, ModelConfig

SIGMA = 0.2
SHAPE = (2, 3, 1)  # h, w, c
DIMS = 6


class _Normal(nn.Module):
    """N(logits, SIGMA² I), which draws nothing."""

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002  # nothing to draw
        return x

    def recon(self, logits: Tensor, x: Tensor) -> Tensor:
        return -torch.distributions.Normal(logits, SIGMA, validate_args=False).log_prob(x).flatten(-3).sum(-1)


class LinearVAE(nn.Module):
    """x = W z + b + noise, so that p(x) is a Gaussian; q has the posterior's mean, and its diagonal widened."""

    config = ModelConfig(*SHAPE, latent_dim=3)
    decoding_format = torch.preserve_format

    def __init__(self, *, orthogonal: bool = False, widened: float = 1.3) -> None:
        super().__init__()
        weight = torch.randn(DIMS, 3, generator=torch.Generator().manual_seed(0)) * 0.3
        self.decoder = nn.Linear(3, DIMS).requires_grad_(False)
        self.decoder.weight.copy_(torch.linalg.qr(weight).Q * 0.5 if orthogonal else weight)
        self.decoder.bias.fill_(0.5)
        self.widened = widened
        self.likelihood = _Normal()
        self.encoded = 0

    def encode(self, x: Tensor) -> DiagonalGaussian:
        self.encoded += len(x)
        weight, bias = self.decoder.weight, self.decoder.bias
        precision = torch.eye(3) + weight.T @ weight / SIGMA**2
        mu = (x.flatten(1) - bias) @ weight @ torch.linalg.inv(precision) / SIGMA**2
        logvar = (torch.linalg.inv(precision).diagonal() * self.widened).log()
        return DiagonalGaussian(mu, logvar.expand(mu.shape))

    def logits(self, z: Tensor) -> Tensor:
        return self.decoder(z).unflatten(-1, (1, *SHAPE[:2]))

    def exact(self, images: np.ndarray) -> np.ndarray:
        """log p(x), from torch's multivariate normal."""
        weight, bias = self.decoder.weight.double(), self.decoder.bias.double()
        density = torch.distributions.MultivariateNormal(bias, weight @ weight.T + SIGMA**2 * torch.eye(DIMS))
        return density.log_prob(pixels(images).flatten(1).double()).numpy()


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(40, 216, (40, *SHAPE), np.uint8)


@pytest.fixture
def bernoulli() -> VAE:
    torch.manual_seed(0)
    config = ModelConfig(9, 6, 1, latent_dim=3, preset="mlp", features=8, likelihood="bernoulli", sigma=None)
    return VAE(config).eval().requires_grad_(False)


def test_a_linear_gaussian_model_gets_its_exact_likelihood(pictures: np.ndarray) -> None:
    vae = LinearVAE()
    found = nll.estimate(vae, pictures)
    exact = vae.exact(pictures)
    for column, samples in enumerate(nll.SAMPLES):
        figures = found.metrics()[str(samples)]
        assert abs(figures["nll"] + exact.mean()) < 4 * figures["sampling_error"]
        effective = found.effective_samples[0, :, column]
        error = np.sqrt(1 / effective - 1 / samples)
        assert (np.abs(found.log_likelihood[0, :, column] - exact) < 5 * error).all()
    assert figures["sampling_error"] < 0.005


def test_the_exact_posterior_gives_exact_estimates_from_every_sample(pictures: np.ndarray) -> None:
    vae = LinearVAE(orthogonal=True, widened=1.0)
    found = nll.estimate(vae, pictures, samples=(2, 50))
    np.testing.assert_allclose(found.log_likelihood[0, :, 0], vae.exact(pictures), atol=1e-4)
    np.testing.assert_allclose(found.effective_samples[0], np.tile([2.0, 50.0], (40, 1)), rtol=1e-6)


def test_a_bernoulli_model_agrees_with_quadrature() -> None:
    torch.manual_seed(1)
    config = ModelConfig(4, 3, 1, latent_dim=1, preset="mlp", features=8, likelihood="bernoulli", sigma=None)
    vae = VAE(config).eval().requires_grad_(False)
    nn.init.normal_(vae.decoder.head.weight, std=2.0)
    images = np.random.default_rng(2).choice(np.array([0, 255], np.uint8), (5, 4, 3, 1))  # a binarisation's own ends
    z = torch.linspace(-8, 8, 4001)[:, None, None]
    with torch.no_grad():
        logits = vae.logits(z.expand(-1, 5, 1))
        bernoulli = torch.distributions.Bernoulli(logits=logits)
        joint = bernoulli.log_prob(pixels(images)).flatten(2).sum(-1) + standard_log_prob(z)
    exact = torch.trapezoid(joint.double().exp(), z[:, 0, :].double(), dim=0).log().numpy()
    found = nll.estimate(vae, images, samples=(20_000,))
    error = np.sqrt(1 / found.effective_samples[0, :, 0] - 1 / 20_000)
    assert (np.abs(found.log_likelihood[0, :, 0] - exact) < 4 * error).all()


def test_batches_do_not_change_the_draws(pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = nll.estimate(LinearVAE(), pictures, samples=(7, 100))
    for chunk, budget in ((1, (1000, 6)), (7, (33, 10_000)), (40, (250, 10_000)), (40, (1000, 10_000))):
        monkeypatch.setattr(nll, "_CHUNK", chunk)
        monkeypatch.setattr(nll, "_CPU_BUDGET", budget)
        found = nll.estimate(LinearVAE(), pictures, samples=(7, 100))
        np.testing.assert_allclose(found.log_likelihood, whole.log_likelihood, atol=1e-4)


def test_fewer_samples_are_a_prefix_of_more(pictures: np.ndarray) -> None:
    few = nll.estimate(LinearVAE(), pictures, samples=(128,))
    many = nll.estimate(LinearVAE(), pictures, samples=(128, 1000))
    np.testing.assert_allclose(few.log_likelihood[..., 0], many.log_likelihood[..., 0], atol=1e-4)
    assert (few.log_likelihood[..., 0] != many.log_likelihood[..., 1]).all()


def test_a_picture_is_measured_alike_whichever_others_are_chosen(pictures: np.ndarray) -> None:
    everything = nll.estimate(LinearVAE(), pictures, samples=(50,))
    some = nll.estimate(LinearVAE(), pictures, n_images=9, samples=(50,))
    assert len(set(some.indices)) == 9
    assert (np.diff(some.indices) > 0).all()
    assert some.indices.tolist() != list(range(9))
    np.testing.assert_allclose(some.log_likelihood, everything.log_likelihood[:, some.indices], atol=1e-4)


def test_a_picture_is_encoded_once_for_all_its_samples(pictures: np.ndarray) -> None:
    vae = LinearVAE()
    nll.estimate(vae, pictures)
    assert vae.encoded == len(pictures)


def test_a_run_of_the_decoder_stays_within_its_budget(
    bernoulli: VAE, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = 9 * 6  # values of a picture's logits, more than the 2 * 8 of a hidden layer before its gate
    for budget, expected in (((20, 10**6), 20), ((10**6, 25 * largest), 25), ((10**6, 1), 1)):
        monkeypatch.setattr(nll, "_CPU_BUDGET", budget)
        rows: list[int] = []
        hook = bernoulli.decoder.register_forward_hook(
            lambda _module, _inputs, output, rows=rows: rows.append(len(output))
        )
        nll.estimate(bernoulli, images[:4], samples=(45,))
        hook.remove()
        assert max(rows) == expected


def test_each_draw_binarises_anew(bernoulli: VAE, images: np.ndarray) -> None:
    found = nll.estimate(bernoulli, images, draws=3, samples=(20,))
    assert found.log_likelihood.shape == (3, len(images), 1)
    for one, other in itertools.combinations(found.log_likelihood, 2):
        assert (one != other).all()
    again = nll.estimate(bernoulli, images, draws=3, samples=(20,))
    np.testing.assert_array_equal(found.log_likelihood, again.log_likelihood)
    other_seed = nll.estimate(bernoulli, images, draws=3, samples=(20,), seed=1)
    assert (found.log_likelihood != other_seed.log_likelihood).all()


def test_what_a_draw_binarises_is_its_own(bernoulli: VAE) -> None:
    """z differs from draw to draw too, so that estimates alone would not tell."""
    grey = np.full((1, 9, 6, 1), 128, np.uint8)
    first, second, again = (nll._observed(bernoulli, grey, draw=draw, index=0, seed=0) for draw in (0, 1, 0))  # noqa: SLF001
    assert set(first.unique().tolist()) == {0, 1}
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


def test_standard_errors_are_those_of_means_over_pictures_and_over_draws() -> None:
    protocol = nll.NllProtocol((10,), 2, 0, 3, 3, "fp32", "", "")
    log_likelihood = -np.array([[1.0, 2.0, 6.0], [3.0, 2.0, 4.0]])[..., None]
    found = nll.NllEstimate(protocol, np.arange(3), log_likelihood, np.full((2, 3, 1), 5.0))
    figures = found.metrics()["10"]
    assert figures["nll"] == pytest.approx(3)
    assert figures["standard_error"] == pytest.approx(np.sqrt(3 / 3))  # of 2, 2, 5: variance 3
    assert figures["standard_error_draws"] == pytest.approx(0)  # of 3, 3
    assert figures["sampling_error"] == pytest.approx(np.sqrt(6 * (1 / 5 - 1 / 10)) / 6)
    assert figures["effective_samples"] == pytest.approx(5)


def test_the_mean_of_effective_samples_does_not_hide_pictures_that_have_few() -> None:
    protocol = nll.NllProtocol((100,), 1, 0, 4, 4, "fp32", "", "")
    effective = np.array([[2.0, 9.0, 11.0, 378.0]])[..., None]
    figures = nll.NllEstimate(protocol, np.arange(4), -np.ones((1, 4, 1)), effective).metrics()["100"]
    assert figures["effective_samples"] == pytest.approx(100)
    assert figures["effective_samples_median"] == pytest.approx(10)
    assert figures["effective_samples_below_10"] == 0.5


def test_sampling_error_is_the_spread_over_seeds(pictures: np.ndarray) -> None:
    found = [nll.estimate(LinearVAE(), pictures, samples=(128,), seed=seed).metrics()["128"] for seed in range(60)]
    spread = np.std([figures["nll"] for figures in found], ddof=1)
    assert spread == pytest.approx(np.mean([figures["sampling_error"] for figures in found]), rel=0.35)


def test_one_draw_has_no_standard_error_over_draws(pictures: np.ndarray) -> None:
    assert nll.estimate(LinearVAE(), pictures, samples=(5,)).metrics()["5"]["standard_error_draws"] is None


def test_bf16_differs_from_fp32_by_rounding_only(bernoulli: VAE, images: np.ndarray) -> None:
    full, half = (
        nll.estimate(bernoulli, images, samples=(200,), precision=precision) for precision in ("fp32", "bf16")
    )
    assert (full.log_likelihood != half.log_likelihood).any()
    np.testing.assert_allclose(half.log_likelihood, full.log_likelihood, rtol=5e-3)


def test_an_estimate_that_was_stopped_goes_on_to_the_same_bits(
    bernoulli: VAE, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nll, "_SAVE_EVERY_S", 0.0)
    whole = nll.estimate(bernoulli, images, draws=2, samples=(3, 30))
    encode, calls = bernoulli.encode, []

    def stop_at_the_third(x: Tensor) -> DiagonalGaussian:
        calls.append(len(x))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(x)

    monkeypatch.setattr(bernoulli, "encode", stop_at_the_third)
    state = tmp_path / "nll.safetensors"
    with pytest.raises(KeyboardInterrupt):
        nll.estimate(bernoulli, images, draws=2, samples=(3, 30), state=state)
    resumed = nll.estimate(bernoulli, images, draws=2, samples=(3, 30), state=state)
    np.testing.assert_array_equal(resumed.log_likelihood, whole.log_likelihood)
    np.testing.assert_array_equal(resumed.effective_samples, whole.effective_samples)
    assert sum(calls) - calls[2] == 2 * len(images)
    assert [path.name for path in tmp_path.iterdir()] == ["nll.safetensors"]


def test_a_finished_estimate_is_read_back_without_running_the_model(pictures: np.ndarray, tmp_path: Path) -> None:
    vae = LinearVAE()
    first = nll.estimate(vae, pictures, samples=(9,), state=tmp_path / "state" / "nll.safetensors")
    second = nll.estimate(vae, pictures, samples=(9,), state=tmp_path / "state" / "nll.safetensors")
    assert vae.encoded == len(pictures)
    assert first.metrics() == second.metrics()


@pytest.mark.parametrize("change", ["seed", "samples", "n_images", "draws", "precision", "model_sha256", "data_sha256"])
def test_another_protocol_starts_anew_and_says_so(
    change: str, pictures: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "nll.safetensors"
    nll.estimate(LinearVAE(), pictures, samples=(9,), state=state)
    assert capsys.readouterr().err == ""
    vae, settings = LinearVAE(), {"samples": (9,), "seed": 0, "n_images": 40}
    if change == "model_sha256":
        vae.decoder.bias += 0.01
    elif change == "data_sha256":
        pictures[3] ^= 1
    else:
        others = {"seed": 1, "samples": (5, 9), "n_images": 30, "draws": 2, "precision": "bf16"}
        settings[change] = others[change]
    found = nll.estimate(vae, pictures, **settings, state=state)
    assert f"{state}: {change} differ" in capsys.readouterr().err
    np.testing.assert_array_equal(found.log_likelihood, nll.estimate(vae, pictures, **settings).log_likelihood)


@pytest.mark.parametrize("content", [b"", b"text", safetensors.torch.save({"weight": torch.zeros(3)})])
def test_a_file_that_is_no_state_is_refused_and_kept(content: bytes, pictures: np.ndarray, tmp_path: Path) -> None:
    state = tmp_path / "model.safetensors"
    state.write_bytes(content)
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors: got something else, expected the state"):
        nll.estimate(LinearVAE(), pictures, state=state)
    assert state.read_bytes() == content


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"samples": ()}, "samples: got "),
        ({"samples": (5, 5)}, "samples: got "),
        ({"samples": (0, 5)}, "samples: got "),
        ({"draws": 0}, "draws: got 0"),
        ({"n_images": 0}, "n_images: got 0, expected a whole number from 1 to 40"),
        ({"n_images": 41}, "n_images: got 41"),
        ({"seed": -1}, "seed: got -1"),
        ({"precision": "fp16"}, "precision: got 'fp16', expected one of fp32, bf16"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, sentence: str, pictures: np.ndarray) -> None:
    with pytest.raises(BadSetting, match=sentence):
        nll.estimate(LinearVAE(), pictures, **settings)


def test_an_autoencoder_has_no_likelihood(bernoulli: VAE, images: np.ndarray) -> None:
    with pytest.raises(BadSetting, match="got autoencoder, expected vae"):
        nll.estimate(VAE(dataclasses.replace(bernoulli.config, family="autoencoder")), images, samples=(2,))


def test_weights_that_are_not_numbers_are_named(pictures: np.ndarray) -> None:
    vae = LinearVAE()
    vae.decoder.bias[0] = torch.nan
    with pytest.raises(NotANumber, match="picture 0: "):
        nll.estimate(vae, pictures, samples=(2,))
