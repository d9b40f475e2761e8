"""The progress of a run, as a person at a terminal sees it."""

import sys
import time
from typing import Self

from tqdm import tqdm

from model.training import Learner

# A log keeps every bar that was drawn.
_TERMINAL_S, _LOG_S = 0.1, 60.0


def interval_s() -> float:
    """Seconds at least from one drawing of a bar to the next, by who looks: a person at a terminal, or a log."""
    return _TERMINAL_S if sys.stderr.isatty() else _LOG_S


class Bar:
    """Images/s, and the terms that a run learns by, averaged over about a hundred steps; in a log now and then."""

    def __init__(self, learner: Learner, *, is_shown: bool) -> None:
        self._learner = learner
        self._is_shown = is_shown
        self._shown_s = 0.0
        self._recon = self._kl = self._weight = 0.0

    def __enter__(self) -> Self:
        learner = self._learner
        self._bar = tqdm(
            total=learner.n_images * learner.training.epochs,
            initial=learner.images_seen,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            mininterval=interval_s(),
            disable=not self._is_shown,
        )
        return self

    def show(self, *, n: int, recon: float, kl: float) -> None:
        """Move on by n images; the numbers are written a few times a second."""
        self._recon, self._kl, self._weight = (
            0.99 * mean + 0.01 * value for mean, value in ((self._recon, recon), (self._kl, kl), (self._weight, 1.0))
        )
        if time.monotonic() - self._shown_s > 0.2 or self._learner.step == self._learner.steps:
            self._shown_s = time.monotonic()
            recon, kl = self._recon / self._weight, self._kl / self._weight
            epoch = (self._learner.step - 1) // self._learner.steps_per_epoch + 1
            self._bar.set_description(f"epoch {epoch}/{self._learner.training.epochs}", refresh=False)
            has_bound = self._learner.vae.config.family == "vae"
            terms = f"elbo {-(recon + kl):.2f}, recon {recon:.2f}, kl {kl:.2f}" if has_bound else f"recon {recon:.2f}"
            self._bar.set_postfix_str(terms, refresh=False)
        self._bar.update(n)

    def __exit__(self, *_: object) -> None:
        self._bar.close()
