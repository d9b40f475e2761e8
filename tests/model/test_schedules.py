"""Schedules at hand-worked steps, and the order of an epoch."""

import itertools
import math

import pytest
import torch

from model.schedules import BETA_SCHEDULES, BetaSchedule, epoch_order, learning_rate, scheduled_beta


@pytest.mark.parametrize("warmup_steps", [9, 60])
def test_the_learning_rate_rises_along_a_line_to_its_highest_and_falls_along_half_a_cosine_to_0(
    warmup_steps: int,
) -> None:
    rates = [learning_rate(step, steps=100, warmup_steps=warmup_steps, highest=2.0) for step in range(101)]
    rising, falling = rates[:warmup_steps], rates[warmup_steps:]
    assert rising == pytest.approx([2.0 * (step + 1) / (warmup_steps + 1) for step in range(warmup_steps)])
    n = len(falling) - 1
    # (1 + cos a) / 2 is the square of cos (a / 2)
    assert falling == pytest.approx([2.0 * math.cos(math.pi * step / n / 2) ** 2 for step in range(n + 1)], abs=1e-12)
    assert falling[0] == max(rates) == 2.0
    assert falling[-1] == pytest.approx(0)


def test_the_first_step_has_a_learning_rate() -> None:
    assert learning_rate(0, steps=10, warmup_steps=1000, highest=1.0) > 0


def test_without_warm_up_the_learning_rate_starts_at_its_highest_and_only_falls() -> None:
    rates = [learning_rate(step, steps=50, warmup_steps=0, highest=0.01) for step in range(51)]
    assert rates[0] == 0.01
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_without_warm_up_the_weight_of_kl_is_there_at_once(schedule: BetaSchedule) -> None:
    for step in (0, 1, 99):
        assert scheduled_beta(step, steps=100, warmup_steps=0, beta=1.5, schedule=schedule) == 1.5


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_a_beta_of_0_stays_0(schedule: BetaSchedule) -> None:
    assert {scheduled_beta(step, steps=100, warmup_steps=7, beta=0.0, schedule=schedule) for step in range(100)} == {0}


@pytest.mark.parametrize(("step", "beta"), [(0, 0.0), (25, 0.5), (50, 1.0), (100, 2.0), (101, 2.0), (10_000, 2.0)])
def test_a_linear_weight_of_kl_rises_along_a_line_and_stays(step: int, beta: float) -> None:
    assert scheduled_beta(step, steps=20_000, warmup_steps=100, beta=2.0, schedule="linear") == beta


@pytest.mark.parametrize(
    ("step", "beta"), [(0, 0.0), (25, 1 - math.sqrt(0.5)), (50, 1.0), (75, 1 + math.sqrt(0.5)), (100, 2.0), (101, 2.0)]
)
def test_a_cosine_weight_of_kl_is_slow_at_both_ends_and_stays(step: int, beta: float) -> None:
    assert scheduled_beta(step, steps=20_000, warmup_steps=100, beta=2.0, schedule="cosine") == pytest.approx(beta)


def test_a_cyclic_weight_of_kl_rises_stays_as_long_and_begins_anew() -> None:
    betas = [scheduled_beta(step, steps=16, warmup_steps=4, beta=2.0, schedule="cyclic") for step in range(16)]
    assert betas == 2 * [0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0]


def test_a_cycle_that_the_run_has_no_room_for_is_not_begun() -> None:
    betas = [scheduled_beta(step, steps=23, warmup_steps=4, beta=1.0, schedule="cyclic") for step in range(23)]
    assert betas == [*(2 * [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]), *(7 * [1.0])]


def test_a_run_shorter_than_a_cycle_rises_once() -> None:
    betas = [scheduled_beta(step, steps=7, warmup_steps=4, beta=1.0, schedule="cyclic") for step in range(7)]
    assert betas == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_an_epoch_visits_every_picture_once() -> None:
    order = epoch_order(1000, seed=3, epoch=5)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(1000))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    order = epoch_order(1000, seed=3, epoch=5)
    torch.rand(3)
    assert torch.equal(order, epoch_order(1000, seed=3, epoch=5))
    for seed, epoch in ((3, 6), (4, 5), (5, 3)):
        assert not torch.equal(order, epoch_order(1000, seed=seed, epoch=epoch))
