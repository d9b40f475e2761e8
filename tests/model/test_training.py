"""The loop: it learns, it repeats itself bit for bit, and it stops at a number that is none."""

import math
from itertools import islice

import numpy as np
import pytest
import torch

from model import data
from model.errors import BadSetting, NotANumber
from model.training import Learner, TrainConfig, epoch_order, learning_rate, pixels
from model.vae import ModelConfig

TINY = {"latent_dim": 3, "channels_base": 4}
SMALL = ModelConfig(9, 6, 1, **TINY)
FEW = TrainConfig(epochs=3, batch_size=8, lr_warmup_steps=2, kl_warmup_epochs=1.0)


def learner(training: TrainConfig = FEW, model: ModelConfig = SMALL) -> Learner:
    return Learner(model, training=training, n_images=30)


def bits(of: Learner) -> dict[str, bytes]:
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in of.state().items()}


def test_the_digits_are_learnt_in_a_few_steps() -> None:
    digits = data.read(None).train
    training = TrainConfig(epochs=8, lr_warmup_steps=10, kl_warmup_epochs=1.0)
    run = Learner(ModelConfig(8, 8, 1, channels_base=8), training=training, n_images=len(digits))
    reports = list(run.run(digits))
    assert len(reports) == run.steps == 8 * 13
    first, last = (np.mean([report.elbo for report in part]) for part in (reports[:5], reports[-5:]))
    assert last > first + 25
    assert all(report.elbo == -(report.recon + report.kl) for report in reports)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("stop_at", [1, 4, 6])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    images: np.ndarray, likelihood: str, stop_at: int
) -> None:
    model = ModelConfig(9, 6, 1, **TINY, likelihood=likelihood, sigma=0.2 if likelihood == "gaussian" else None)
    whole, first, second = (learner(model=model) for _ in range(3))
    expected = list(whole.run(images))
    got = list(islice(first.run(images), stop_at))
    saved = {name: tensor.contiguous().clone() for name, tensor in first.state().items()}
    second.load_state(saved)
    got += list(second.run(images))
    assert got == expected
    assert bits(second) == bits(whole)


def test_another_seed_is_another_run(images: np.ndarray) -> None:
    first, second = learner(), learner(TrainConfig(epochs=3, batch_size=8, seed=1))
    assert bits(first)["weights.decoder.dense.weight"] != bits(second)["weights.decoder.dense.weight"]
    assert bits(first)["noise"] != bits(second)["noise"]


def test_a_run_leaves_the_global_generator_and_settings_alone(images: np.ndarray) -> None:
    state = torch.get_rng_state()
    was = torch.are_deterministic_algorithms_enabled()
    next(learner().run(images))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.are_deterministic_algorithms_enabled() == was


def test_each_epoch_visits_every_picture_once_in_an_order_of_its_own() -> None:
    orders = [epoch_order(100, seed=3, epoch=epoch).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert epoch_order(100, seed=3, epoch=1).tolist() == orders[1]
    assert epoch_order(100, seed=4, epoch=1).tolist() != orders[1]


def test_every_picture_counts_the_last_batch_of_an_epoch_being_smaller(images: np.ndarray) -> None:
    run = learner()
    assert [(report.n, run.images_seen) for report in islice(run.run(images), 5)] == [
        (8, 8),
        (8, 16),
        (8, 24),
        (6, 30),
        (8, 38),
    ]


@pytest.mark.parametrize(("bias", "term"), [("decoder.pixels.bias", "recon"), ("encoder.mu.bias", "recon")])
def test_a_number_that_is_none_stops_the_run_and_names_step_and_term(images: np.ndarray, bias: str, term: str) -> None:
    run = learner()
    steps = run.run(images)
    next(steps)
    with torch.no_grad():
        run.vae.get_parameter(bias).fill_(math.nan)
    before = bits(run)
    with pytest.raises(NotANumber, match=f"step 1: {term} is nan, expected a finite number"):
        next(steps)
    assert bits(run) | {"noise": b""} == before | {"noise": b""}


def test_a_kl_that_is_infinite_is_named(images: np.ndarray) -> None:
    run = learner()
    with torch.no_grad():
        run.vae.encoder.mu.bias.fill_(1e30)
    with pytest.raises(NotANumber, match="step 0: kl is inf"):
        next(run.run(images))


def test_a_gradient_is_shortened_to_the_norm_of_the_config(images: np.ndarray) -> None:
    run = learner(TrainConfig(epochs=1, batch_size=8, grad_clip=1e-3))
    next(run.run(images))
    norm = torch.stack([weight.grad.norm() for weight in run.vae.parameters() if weight.grad is not None]).norm()
    assert norm.item() == pytest.approx(1e-3 * 9 * 6, rel=1e-3)


def test_the_average_is_the_running_mean_of_the_weights(images: np.ndarray) -> None:
    run = learner(TrainConfig(epochs=3, batch_size=8, average_decay=0.5))
    name = "decoder.dense.weight"
    expected = run.vae.get_parameter(name).detach().clone()
    for report in run.run(images):
        decay = min(0.5, report.step / (report.step + 9))
        expected = decay * expected + (1 - decay) * run.vae.get_parameter(name).detach()
    torch.testing.assert_close(run.average.get_parameter(name), expected)


def test_without_decay_the_average_is_the_last_weights(images: np.ndarray) -> None:
    run = learner(TrainConfig(epochs=1, batch_size=8, average_decay=0.0))
    list(run.run(images))
    for got, expected in zip(run.average.parameters(), run.vae.parameters(), strict=True):
        torch.testing.assert_close(got, expected.detach())


def test_the_learning_rate_rises_along_a_line_and_falls_along_a_cosine() -> None:
    training = TrainConfig(learning_rate=1.0, lr_warmup_steps=9)
    rates = [learning_rate(step, steps=1000, training=training) for step in range(1000)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[500] == pytest.approx(0.5)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 1e-5


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
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"batch_size": 1.5}, "batch_size: got 1.5"),
        ({"seed": -1}, "seed: got -1, expected a whole number from 0"),
        ({"seed": 2**63}, "seed: got"),
        ({"lr_warmup_steps": -1}, "lr_warmup_steps: got -1"),
        ({"learning_rate": 0.0}, "learning_rate: got 0.0, expected a number above 0"),
        ({"learning_rate": math.nan}, "learning_rate: got nan"),
        ({"grad_clip": 0.0}, "grad_clip: got 0.0"),
        ({"beta": -0.5}, "beta: got -0.5, expected a number from 0"),
        ({"kl_warmup_epochs": math.inf}, "kl_warmup_epochs: got inf"),
        ({"average_decay": 1.0}, "average_decay: got 1.0, expected a number from 0 to below 1"),
    ],
)
def test_a_setting_out_of_range_is_refused_with_got_and_expected(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(BadSetting, match=sentence):
        TrainConfig(**options)  # type: ignore[arg-type]
