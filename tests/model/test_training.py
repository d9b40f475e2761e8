"""The loop: it learns, it repeats itself bit for bit, and it stops at a number that is none."""

import dataclasses
import itertools
import math
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from model import data
from model.errors import BadSetting, NotANumber
from model.machine import Machine
from model.objectives import elbo_terms, importance_weighted
from model.pixels import pixels
from model.schedules import epoch_order, learning_rate, scheduled_beta
from model.training import Learner, StepReport, TrainConfig
from model.vae import ModelConfig

TINY = {"latent_dim": 3, "features": 4}
SMALL = ModelConfig(9, 6, 1, **TINY)
POINT = dataclasses.replace(SMALL, family="autoencoder")
# Its posterior is so narrow that noise, which is drawn otherwise for slices than for a whole, moves nothing.
NARROW = dataclasses.replace(SMALL, logvar_range=(-80.0, -79.0))
FEW = TrainConfig(epochs=3, batch_size=8, lr_warmup_steps=2, kl_warmup_epochs=1.0)
LAST_PHASE = dataclasses.replace(FEW, iw_samples=3, iw_epochs=1.0)  # steps 0 to 7, then the bound from step 8
LIKELIHOODS = {
    "gaussian": {"sigma": 0.2},
    "learned": {"sigma": "learned"},
    "optimal": {"sigma": "optimal"},
    "dequantised": {"sigma": 0.2, "dequantised": True},
    "bernoulli": {"likelihood": "bernoulli", "sigma": None},
    "continuous_bernoulli": {"likelihood": "continuous_bernoulli", "sigma": None},
    "logistic": {"likelihood": "logistic", "sigma": None},
}
SETTINGS = {
    "elbo": FEW,
    "accumulate": dataclasses.replace(FEW, accumulate=2),
    "weight_decay": dataclasses.replace(FEW, weight_decay=0.5),
    "cyclic": dataclasses.replace(FEW, beta_schedule="cyclic", free_bits=0.1),
    "last_weights": dataclasses.replace(FEW, average_decay=0.0),
    "iw": LAST_PHASE,
    "iw_accumulate": dataclasses.replace(LAST_PHASE, accumulate=2, weight_decay=0.5),
}


def learner(training: TrainConfig = FEW, model: ModelConfig = SMALL) -> Learner:
    return Learner(model, training=training, n_images=30)


def bits(of: Learner) -> dict[str, bytes]:
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in of.state().items()}


def successor(of: Learner, *, model: ModelConfig) -> Learner:
    """A new learner that stands where the other does, its state having gone through a file's bytes."""
    content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in of.state().items()})
    resumed = learner(of.training, model)
    resumed.load_state(safetensors.torch.load(content))
    return resumed


def assert_resumes_exactly(images: np.ndarray, *, training: TrainConfig, model: ModelConfig, stops: list[int]) -> None:
    """A run that is stopped at each of these steps, and goes on in a new learner, is the run that never stopped."""
    whole, run = learner(training, model), learner(training, model)
    expected = list(whole.run(images))
    got: list[StepReport] = []
    for stop_at in stops:
        got += islice(run.run(images), stop_at - run.step)
        run = successor(run, model=model)
    got += run.run(images)
    assert got == expected
    assert bits(run) == bits(whole)


def test_the_digits_are_learnt_in_a_few_steps() -> None:
    digits = data.read(None).train
    training = TrainConfig(epochs=8, lr_warmup_steps=10, kl_warmup_epochs=1.0)
    run = Learner(ModelConfig(8, 8, 1, features=4), training=training, n_images=len(digits))
    reports = list(run.run(digits))
    assert len(reports) == run.steps == 8 * 13
    first, last = (np.mean([report.elbo for report in part]) for part in (reports[:5], reports[-5:]))
    assert last > first + 25
    assert all(report.elbo == -(report.recon + report.kl) for report in reports)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("preset", ["small", "residual", "mlp"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    images: np.ndarray, likelihood: str, preset: str, precision: str
) -> None:
    model = ModelConfig(9, 6, 1, **TINY, preset=preset, **LIKELIHOODS[likelihood])
    training = dataclasses.replace(FEW, precision=precision)
    assert_resumes_exactly(images, training=training, model=model, stops=[1, 4, 6])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_it_does_under_every_way_to_train(images: np.ndarray, setting: str, precision: str) -> None:
    training = dataclasses.replace(SETTINGS[setting], precision=precision)
    assert_resumes_exactly(images, training=training, model=SMALL, stops=[0, 3, 7, 8, 10, 12])


def test_it_does_for_an_autoencoder(images: np.ndarray) -> None:
    assert_resumes_exactly(images, training=FEW, model=POINT, stops=[5])


def test_another_seed_is_another_run(images: np.ndarray) -> None:
    first, second = learner(), learner(dataclasses.replace(FEW, seed=1))
    assert bits(first)["weights.decoder.dense.weight"] != bits(second)["weights.decoder.dense.weight"]
    assert bits(first)["noise"] != bits(second)["noise"]


def test_each_process_draws_noise_of_its_own_and_starts_from_the_same_weights() -> None:
    training = dataclasses.replace(FEW, processes=2)
    first, second = (
        Learner(SMALL, training=training, n_images=30, machine=Machine(torch.device("cpu"), rank=rank, processes=2))
        for rank in range(2)
    )
    assert bits(first)["noise"] != bits(second)["noise"]
    assert bits(first) | {"noise": b""} == bits(second) | {"noise": b""}


def test_a_run_leaves_the_global_generator_and_settings_alone(images: np.ndarray) -> None:
    state = torch.get_rng_state()
    was = torch.are_deterministic_algorithms_enabled()
    run = learner()
    next(run.run(images))
    run.validate(images)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.are_deterministic_algorithms_enabled() == was


def test_every_picture_counts_the_last_batch_of_an_epoch_being_smaller(images: np.ndarray) -> None:
    run = learner()
    assert [(report.n, run.images_seen) for report in islice(run.run(images), 5)] == [
        (8, 8),
        (8, 16),
        (8, 24),
        (6, 30),
        (8, 38),
    ]


def test_a_report_weighs_every_picture_alike(images: np.ndarray) -> None:
    """5 pictures in 2 slices are 3 and 2; the report is the mean over 5, not that of two means."""
    run = Learner(POINT, training=TrainConfig(batch_size=5, accumulate=2), n_images=5)
    x = pixels(images[:5])
    recon = run.vae.likelihood.recon(run.vae.logits(run.vae.encode(x).mu), x)
    report = next(run.run(images[:5]))
    assert report.recon == pytest.approx(recon.mean().item(), rel=1e-5)
    assert report.recon != pytest.approx((recon[:3].mean() + recon[3:].mean()).item() / 2, rel=1e-5)


class Sight:
    """A likelihood's `draw` that remembers which pictures it was asked for: each is one grey level, its index."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def draw(self, x: Tensor, _generator: torch.Generator) -> Tensor:
        self.rows += (x[:, 0, 0, 0] * 255).round().int().tolist()
        return x


class Alone:
    """An accelerator whose other processes have nothing to say."""

    def reduce(self, tensor: Tensor, _reduction: str) -> Tensor:
        return tensor.clone()

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_work_on_disjoint_shards_that_cover_each_batch(
    processes: int, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.arange(30, dtype=np.uint8).reshape(30, 1, 1, 1).repeat(9, axis=1).repeat(6, axis=2)
    training = dataclasses.replace(FEW, batch_size=7, accumulate=accumulate, processes=processes)
    shards: list[list[list[int]]] = []
    for rank in range(processes):
        machine = Machine(torch.device("cpu"), rank, processes, Alone())
        run = Learner(SMALL, training=training, n_images=30, machine=machine)
        seen: list[list[int]] = []
        for _ in range(run.steps):
            sight = Sight()
            monkeypatch.setattr(run.vae.likelihood, "draw", sight.draw)
            next(run.run(images))
            seen.append(sight.rows)
        shards.append(seen)
    batches = [batch.tolist() for epoch in range(3) for batch in torch.split(epoch_order(30, seed=0, epoch=epoch), 7)]
    for batch, *rows in zip(batches, *shards, strict=True):
        assert sorted(itertools.chain.from_iterable(rows)) == sorted(batch)
        assert max(map(len, rows)) - min(map(len, rows)) <= 1


@pytest.mark.parametrize("model", [POINT, NARROW], ids=["autoencoder", "vae"])
@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulated_slices_give_the_gradient_of_the_whole(
    images: np.ndarray, model: ModelConfig, accumulate: int
) -> None:
    whole = learner(dataclasses.replace(FEW, grad_clip=1e9, kl_warmup_epochs=0.0), model)
    sliced = learner(dataclasses.replace(whole.training, accumulate=accumulate), model)
    expected, got = (next(run.run(images)) for run in (whole, sliced))
    assert got.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-5)
    assert got.elbo == pytest.approx(expected.elbo, rel=1e-5)
    for one, other in zip(whole.vae.parameters(), sliced.vae.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-4 * expected.gradient_norm)


def test_weight_decay_touches_matrices_only(images: np.ndarray) -> None:
    """AdamW takes rate * decay of a weight off it, whatever its gradient; the first rate is a third of the highest."""
    model = dataclasses.replace(SMALL, preset="residual", sigma="learned")
    plain, decayed = learner(FEW, model), learner(dataclasses.replace(FEW, weight_decay=0.5), model)
    before = {name: weight.detach().clone() for name, weight in plain.vae.named_parameters()}
    rate = next(plain.run(images)).learning_rate
    assert next(decayed.run(images)).learning_rate == rate == pytest.approx(2e-3 / 3)
    for name, weight in decayed.vae.named_parameters():
        taken = 0.5 * rate * before[name] if weight.ndim > 1 else torch.zeros_like(weight)
        torch.testing.assert_close(plain.vae.get_parameter(name) - weight, taken, rtol=0, atol=1e-7)
    assert {weight.ndim for weight in before.values()} >= {0, 1, 2, 4}


def test_the_last_phase_reports_the_importance_weighted_bound_and_no_other_does(images: np.ndarray) -> None:
    reports = list(learner(LAST_PHASE).run(images))
    assert [report.bound is None for report in reports] == [True] * 8 + [False] * 4


def test_the_whole_run_may_be_the_last_phase(images: np.ndarray) -> None:
    training = dataclasses.replace(FEW, iw_samples=2, iw_epochs=3.0)
    assert all(report.bound is not None for report in learner(training).run(images))


def test_the_bound_of_several_draws_lies_above_the_elbo_on_average(images: np.ndarray) -> None:
    """As the logarithm is concave; the likelihood is sharp, so that draws differ much in their weight."""
    training = dataclasses.replace(FEW, epochs=25, iw_samples=10, iw_epochs=25.0)
    reports = list(learner(training, dataclasses.replace(SMALL, sigma=0.05)).run(images))
    gaps = [report.bound - report.elbo for report in reports if report.bound is not None]
    assert np.mean(gaps) > 3 * np.std(gaps) / math.sqrt(len(gaps)) > 0


def test_the_last_phase_raises_the_bound(images: np.ndarray) -> None:
    training = dataclasses.replace(FEW, epochs=25, iw_samples=10, iw_epochs=25.0)
    bounds = [report.bound or 0.0 for report in learner(training).run(images)]
    assert np.mean(bounds[-10:]) > np.mean(bounds[:10]) + 1


def test_an_autoencoder_learns_from_reconstruction_alone(images: np.ndarray) -> None:
    training = dataclasses.replace(FEW, epochs=25)
    reports = list(learner(training, POINT).run(images))
    assert all(report.kl == 0 and report.elbo == -report.recon for report in reports)
    assert np.mean([report.recon for report in reports[-4:]]) < np.mean([report.recon for report in reports[:4]]) - 1
    assert bits(learner(training, POINT)).keys() == bits(learner(training)).keys()


def test_without_beta_the_kl_is_reported_and_not_trained(images: np.ndarray) -> None:
    """The gradient of a narrow VAE whose KL counts nothing is that of its reconstruction: an autoencoder's."""
    free = learner(dataclasses.replace(FEW, beta=0.0), NARROW)
    report = next(free.run(images))
    assert report.kl > 1
    assert report.beta == 0
    x = pixels(images[epoch_order(30, seed=0, epoch=0)[:8].numpy()])
    fresh = learner(FEW, NARROW).vae
    fresh.likelihood.recon(fresh.logits(fresh.encode(x).mu), x).mean().backward()  # type: ignore[no-untyped-call]
    for got, expected in zip(free.vae.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-4, atol=1e-4)


def test_a_step_takes_its_learning_rate_from_the_schedule(images: np.ndarray) -> None:
    got = [report.learning_rate for report in learner().run(images)]
    assert got == [learning_rate(step, steps=12, warmup_steps=2, highest=2e-3) for step in range(12)]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "cyclic"])
def test_a_step_takes_its_beta_from_the_schedule(images: np.ndarray, schedule: str) -> None:
    training = TrainConfig(epochs=3, batch_size=8, beta=0.7, beta_schedule=schedule, kl_warmup_epochs=1.5)
    got = [report.beta for report in learner(training).run(images)]
    assert got == [
        scheduled_beta(step, steps=12, warmup_steps=6, beta=0.7, schedule=training.beta_schedule) for step in range(12)
    ]
    assert got[0] == 0
    assert max(got) == pytest.approx(0.7)


@pytest.mark.parametrize("bias", ["decoder.pixels.bias", "encoder.head.bias"])
def test_a_number_that_is_none_stops_the_run_and_names_step_and_term(images: np.ndarray, bias: str) -> None:
    run = learner()
    steps = run.run(images)
    next(steps)
    with torch.no_grad():
        run.vae.get_parameter(bias).fill_(math.nan)
    before = bits(run)
    with pytest.raises(NotANumber, match="step 1: recon is nan, expected a finite number"):
        next(steps)
    assert bits(run) | {"noise": b""} == before | {"noise": b""}


def test_a_kl_that_is_infinite_is_named(images: np.ndarray) -> None:
    run = learner()
    with torch.no_grad():
        run.vae.get_parameter("encoder.head.bias").fill_(1e30)
    with pytest.raises(NotANumber, match="step 0: kl is inf"):
        next(run.run(images))


def test_a_gradient_that_is_none_is_named(images: np.ndarray) -> None:
    run = learner()
    run.vae.get_parameter("decoder.dense.bias").register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NotANumber, match=r"step 0: gradient is (nan|inf)"):
        next(run.run(images))


def test_a_gradient_is_shortened_to_the_norm_of_the_config(images: np.ndarray) -> None:
    run = learner(TrainConfig(epochs=1, batch_size=8, grad_clip=1e-3))
    report = next(run.run(images))
    norm = torch.stack([weight.grad.norm() for weight in run.vae.parameters() if weight.grad is not None]).norm()
    assert norm.item() == pytest.approx(1e-3 * 9 * 6, rel=1e-3)
    assert report.gradient_norm > 2 * norm


def test_bf16_keeps_weights_in_float32_and_finds_about_the_same_terms(images: np.ndarray) -> None:
    exact, coarse = learner(), learner(dataclasses.replace(FEW, precision="bf16"))
    expected, got = (next(run.run(images)) for run in (exact, coarse))
    assert got.recon == pytest.approx(expected.recon, rel=0.01)
    assert got.recon != expected.recon
    assert all(weight.dtype == torch.float32 for weight in coarse.vae.parameters())


def test_the_average_is_the_running_mean_of_the_weights(images: np.ndarray) -> None:
    run = learner(TrainConfig(epochs=3, batch_size=8, average_decay=0.5))
    name = "decoder.dense.weight"
    expected = run.vae.get_parameter(name).detach().clone()
    for report in run.run(images):
        decay = min(0.5, report.step / (report.step + 9))
        expected = decay * expected + (1 - decay) * run.vae.get_parameter(name).detach()
    torch.testing.assert_close(run.average.get_parameter(name), expected)


def test_the_average_has_the_optimal_sigma_of_the_last_step(images: np.ndarray) -> None:
    run = learner(model=dataclasses.replace(SMALL, sigma="optimal"))
    list(islice(run.run(images), 3))
    assert run.average.get_buffer("likelihood.sigma.updates") == 3
    assert torch.equal(
        run.average.get_buffer("likelihood.sigma.running"), run.vae.get_buffer("likelihood.sigma.running")
    )


def test_without_decay_the_average_is_the_last_weights(images: np.ndarray) -> None:
    run = learner(TrainConfig(epochs=1, batch_size=8, average_decay=0.0))
    list(run.run(images))
    for got, expected in zip(run.average.parameters(), run.vae.parameters(), strict=True):
        torch.testing.assert_close(got, expected.detach())


def test_validation_measures_the_averaged_weights_on_all_pictures_alike(images: np.ndarray) -> None:
    """600 pictures are two batches of other sizes; a posterior this narrow leaves nothing to the draws."""
    run = learner(model=NARROW)
    list(run.run(images))
    many = images.repeat(15, axis=0)
    x = pixels(many)
    posterior = run.average.encode(x)
    recon = run.average.likelihood.recon(run.average.logits(posterior.mu), x).mean().item()
    kl = posterior.kl().mean().item()
    assert run.validate(many) == pytest.approx({"elbo": -(recon + kl), "recon": recon, "kl": kl}, rel=1e-5)


def test_validation_in_the_last_phase_measures_its_bound_too(images: np.ndarray) -> None:
    run = learner(LAST_PHASE)
    found = [run.validate(images) for _ in run.run(images)]
    assert ["bound" in each for each in found] == [False] * 8 + [True] * 4
    last = found[-1]
    assert last == run.validate(images)
    assert last["bound"] > last["elbo"] == pytest.approx(-(last["recon"] + last["kl"]))
    x, eps = (
        pixels(images),
        torch.randn(5000, len(images), TINY["latent_dim"], generator=torch.Generator().manual_seed(1)),
    )
    with torch.no_grad():
        exact = importance_weighted(run.average, x, eps).bound.mean().item()
    assert last["elbo"] < last["bound"] < exact + 0.1


def test_validation_is_measured_in_float32(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = list[bool]()

    def noting(*arguments: Any) -> Any:
        allowed.append(torch.backends.cudnn.allow_tf32)
        return elbo_terms(*arguments)

    monkeypatch.setattr("model.training.elbo_terms", noting)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    learner().validate(images)
    assert allowed == [False]
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_validation_repeats_itself_and_does_not_move_the_run(images: np.ndarray, likelihood: str) -> None:
    run, alone = (learner(model=ModelConfig(9, 6, 1, **TINY, **LIKELIHOODS[likelihood])) for _ in range(2))
    for _ in run.run(images):
        assert run.validate(images) == run.validate(images)
    list(alone.run(images))
    assert bits(run) == bits(alone)


def test_pixels_are_the_grey_levels_from_zero_to_one() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 8, 8, 4)
    x = pixels(levels)
    assert x.shape == (1, 4, 8, 8)
    assert x[0, 3, 0, 0].item() == pytest.approx(3 / 255)
    assert (x.min(), x.max()) == (0, 1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epochs": 0}, "epochs: got 0, expected a whole number from 1"),
        ({"batch_size": 0}, "batch_size: got 0, expected a whole number from 1"),
        ({"batch_size": 1.5}, "batch_size: got 1.5, expected a whole number from 1"),
        ({"batch_size": True}, "batch_size: got True, expected a whole number from 1"),
        ({"accumulate": 0}, "accumulate: got 0, expected a whole number from 1"),
        ({"lr_warmup_steps": -1}, "lr_warmup_steps: got -1, expected a whole number from 0"),
        ({"iw_samples": 0}, "iw_samples: got 0, expected a whole number from 1"),
        ({"processes": 0}, "processes: got 0, expected a whole number from 1"),
        ({"seed": -1}, "seed: got -1, expected a whole number from 0"),
        ({"seed": 2**63}, f"seed: got {2**63}, expected a whole number from 0"),
        ({"learning_rate": 0.0}, "learning_rate: got 0.0, expected a number above 0"),
        ({"learning_rate": math.nan}, "learning_rate: got nan, expected a number above 0"),
        ({"grad_clip": 0.0}, "grad_clip: got 0.0, expected a number above 0"),
        ({"grad_clip": math.inf}, "grad_clip: got inf, expected a number above 0"),
        ({"beta": -0.5}, "beta: got -0.5, expected a number from 0"),
        ({"kl_warmup_epochs": math.inf}, "kl_warmup_epochs: got inf, expected a number from 0"),
        ({"weight_decay": -0.1}, "weight_decay: got -0.1, expected a number from 0"),
        ({"free_bits": math.nan}, "free_bits: got nan, expected a number from 0"),
        ({"iw_epochs": -1.0}, "iw_epochs: got -1.0, expected a number from 0"),
        ({"average_decay": 1.0}, "average_decay: got 1.0, expected a number from 0 to below 1"),
        ({"average_decay": -0.1}, "average_decay: got -0.1, expected a number from 0 to below 1"),
        ({"beta_schedule": "step"}, "beta_schedule: got 'step', expected one of linear, cosine, cyclic"),
        ({"precision": "fp16"}, "precision: got 'fp16', expected one of fp32, bf16"),
        (
            {"batch_size": 5, "accumulate": 3, "processes": 2},
            "batch_size: got 5, expected at least one for each of 3 slices on each of 2 processes",
        ),
        ({"epochs": 2, "iw_epochs": 3.0, "iw_samples": 2}, "iw_epochs: got 3.0, expected at most all 2 epochs"),
        ({"iw_epochs": 1.0}, "iw_samples: got 1 for 1.0 epochs, expected 2 or more of them together with iw_epochs"),
        ({"iw_samples": 2}, "iw_samples: got 2 for 0.0 epochs, expected 2 or more of them together with iw_epochs"),
        (
            {"iw_epochs": 1.0, "iw_samples": 2, "beta": 0.5},
            "iw_epochs: got beta 0.5 and free_bits 0.0, expected beta 1",
        ),
        ({"iw_epochs": 1.0, "iw_samples": 2, "free_bits": 0.1}, "iw_epochs: got beta 1.0 and free_bits 0.1, expected"),
    ],
)
def test_a_setting_out_of_range_is_refused_with_got_and_expected(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(BadSetting) as refused:
        TrainConfig(**options)  # type: ignore[arg-type]
    assert sentence in str(refused.value)


def test_an_autoencoder_has_no_importance_weights() -> None:
    with pytest.raises(BadSetting, match="iw_epochs: got some with an autoencoder, expected 0"):
        learner(LAST_PHASE, POINT)


def test_importance_weights_with_the_sigma_that_is_optimal_for_the_elbo_are_refused() -> None:
    with pytest.raises(BadSetting, match="iw_epochs: got some with sigma optimal, which is so for the elbo; expected"):
        learner(LAST_PHASE, dataclasses.replace(SMALL, sigma="optimal"))


def test_a_process_without_a_picture_is_refused() -> None:
    machine = Machine(torch.device("cpu"), processes=3)
    with pytest.raises(BadSetting, match="processes: got 3, expected at most one per picture, 2"):
        Learner(SMALL, training=dataclasses.replace(FEW, processes=3), n_images=2, machine=machine)


def test_a_machine_of_another_number_of_processes_is_refused() -> None:
    with pytest.raises(BadSetting, match="processes: got 1 on this machine, expected 3"):
        learner(dataclasses.replace(FEW, processes=3))


@pytest.mark.filterwarnings("ignore")  # as below
def test_networks_that_cannot_be_compiled_are_a_sentence(
    images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config  # takes seconds, and no other test but the next needs it

    mlp = dataclasses.replace(SMALL, preset="mlp", features=5)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # where nothing is compiled yet
    sentence = r"^compile: got .*no-such-compiler',\), expected what torch\.compile needs, a C\+\+ compiler above all$"
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(BadSetting, match=sentence):
        next(learner(dataclasses.replace(FEW, compile=True), mlp).run(images))


@pytest.mark.filterwarnings("ignore")  # the compiler warns of what it does itself
def test_compiled_networks_learn_what_others_do(images: np.ndarray) -> None:
    mlp = dataclasses.replace(SMALL, preset="mlp", features=4, depth=1)
    plain, compiled = (learner(dataclasses.replace(FEW, compile=flag), mlp) for flag in (False, True))
    for expected, got in zip(islice(plain.run(images), 3), islice(compiled.run(images), 3), strict=True):
        assert got.elbo == pytest.approx(expected.elbo, rel=1e-5)
    assert compiled.vae.encoder._compiled_call_impl is not None  # noqa: SLF001  # or nothing was compiled
