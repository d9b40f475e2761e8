"""What changes in the course of a run: the learning rate, the weight of the KL term, the order of the pictures."""

import math
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

BetaSchedule = Literal["linear", "cosine", "cyclic"]
BETA_SCHEDULES = get_args(BetaSchedule)


def learning_rate(step: int, *, steps: int, warmup_steps: int, highest: float) -> float:
    """Up a straight line for the warm-up, then down half a cosine to 0 at the run's end.

    Source:  warm-up: Goyal et al. 2017, section 2.2, arXiv:1706.02677
             cosine: Loshchilov & Hutter 2017, equation 5, arXiv:1608.03983
    """
    if step < warmup_steps:
        return highest * (step + 1) / (warmup_steps + 1)
    fallen = (step - warmup_steps) / (steps - warmup_steps)
    return highest * 0.5 * (1 + math.cos(math.pi * fallen))


def scheduled_beta(step: int, *, steps: int, warmup_steps: int, beta: float, schedule: BetaSchedule) -> float:
    """The weight of the KL term at a step: up from 0 for the warm-up, then constant.

    `linear` rises along a straight line, `cosine` along half a cosine, slow at both ends. `cyclic` rises along a line,
    stays for as long, and begins anew, as often as the run has room for; after the last whole cycle it stays.

    Source:  linear: Sønderby et al. 2016, section 2.3, arXiv:1602.02282
             cyclic: Fu et al. 2019, equations 6 to 8, arXiv:1903.10145
    """
    if warmup_steps == 0:
        return beta
    cycle_steps = 2 * warmup_steps
    if schedule == "cyclic" and step < steps // cycle_steps * cycle_steps:
        step %= cycle_steps
    risen = min(1.0, step / warmup_steps)
    return beta * (0.5 * (1 - math.cos(math.pi * risen)) if schedule == "cosine" else risen)


def epoch_order(n: int, *, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits its pictures: a function of seed and epoch alone.

    Shapes:  -> (n,) int64
    """
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(n))
