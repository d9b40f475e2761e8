"""p(x given z): what a decoder's logits say about pixels, as normalised masses and densities, black 0 and white 1."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

# Half a grey level: a narrower density would only fit the rounding of pixels to 256 levels.
SIGMA_FLOOR = 1 / 512
_FIRST_SIGMA = 0.3
# The optimal sigma is averaged over about this many steps.
_MEMORY_STEPS = 100
# Closer to 0 than this, formulas that divide by a logit lose digits, and their series need two terms.
_NEAR_ZERO = 0.1
_LOG_2_PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Levels:
    """The 256 grey levels of a picture on the line from 0 to 1, where densities live.

    A density over pictures as they are is one over 256 points, so its height says nothing about a mass. Dequantised,
    each level is an interval that a picture is spread over, and the density's integral over it bounds a mass.

    Source:  Theis et al. 2016, section 3.1, arXiv:1511.01844
    """

    dequantised: bool

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The pictures as they are or, dequantised, at a random place of each pixel's interval."""
        return (x * 255 + _uniform(x, generator)) / 256 if self.dequantised else x

    def settle(self, x: Tensor) -> Tensor:
        """The pictures as they are or, dequantised, in the middle of each pixel's interval."""
        return (x * 255 + 0.5) / 256 if self.dequantised else x

    def picture(self, y: Tensor) -> Tensor:
        """The picture whose pixels have these middles: the inverse of `settle`, within [0, 1]."""
        return ((y * 256 - 0.5) / 255).clamp(0, 1) if self.dequantised else y


class Bernoulli(nn.Module):
    """A mass over binary pictures; grey is the probability of white.

    Source:  Kingma & Welling 2014, appendix C.1, arXiv:1312.6114
    """

    is_mass = True

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A fresh binarisation of grey pictures, white with the probability that x says.

        Source:  Burda et al. 2016, section 5, arXiv:1509.00519
        """
        return (_uniform(x, generator) < x).to(x.dtype)

    def settle(self, x: Tensor) -> Tensor:
        """The binary picture that stands for a grey one where nothing is drawn: white from 128 of 255 up."""
        return (x >= 0.5).to(x.dtype)

    def mean(self, logits: Tensor) -> Tensor:
        """The mean of p(x given z), in [0, 1]."""
        return torch.sigmoid(logits)

    def recon(self, logits: Tensor, x: Tensor) -> Tensor:
        """-log p(x given z) of binary x, one value per row.

        Shapes:  logits (*k, n, c, h, w), x (n, c, h, w) -> (*k, n)
        Units:   nats, summed over data dimensions
        Raises:  ValueError if x has another shape than the rows of logits
        """
        _same_rows(logits, x)
        return (functional.softplus(logits) - logits * x).flatten(-3).sum(-1)


class ContinuousBernoulli(nn.Module):
    """A density over grey pictures: the Bernoulli's formula, normalised over [0, 1].

    Source:  Loaiza-Ganem & Cunningham 2019, arXiv:1907.06845
    """

    is_mass = False

    def __init__(self, levels: Levels) -> None:
        super().__init__()
        self.levels = levels

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The pictures as training sees them, as `Levels.draw` gives them."""
        return self.levels.draw(x, generator)

    def settle(self, x: Tensor) -> Tensor:
        """The pictures as `Levels.settle` gives them."""
        return self.levels.settle(x)

    def mean(self, logits: Tensor) -> Tensor:
        """The mean of p(x given z), in [0, 1]: 1 / (1 - exp(-l)) - 1 / l, nearer to grey than the sigmoid of l.

        Source:  Loaiza-Ganem & Cunningham 2019, equation 8, arXiv:1907.06845
        """
        near = logits.abs() < _NEAR_ZERO
        far = torch.where(near, 1.0, logits)
        return self.levels.picture(
            torch.where(near, 0.5 + logits / 12 - logits**3 / 720, -1 / torch.expm1(-far) - 1 / far)
        )

    def recon(self, logits: Tensor, x: Tensor) -> Tensor:
        """-log p(x given z), one value per row.

        Shapes:  logits (*k, n, c, h, w), x (n, c, h, w) -> (*k, n)
        Units:   nats, summed over data dimensions
        Raises:  ValueError if x has another shape than the rows of logits
        Source:  Loaiza-Ganem & Cunningham 2019, equations 5 and 6, arXiv:1907.06845
        """
        _same_rows(logits, x)
        near = logits.abs() < _NEAR_ZERO
        far = torch.where(near, 1.0, logits)
        # In logits the normaliser is l / tanh(l / 2); its logarithm is even, and log 2 + l²/12 - 7l⁴/1440 about 0.
        square = logits.square()
        log_normaliser = torch.where(
            near, math.log(2) + square / 12 - 7 * square.square() / 1440, torch.log(far / torch.tanh(far / 2))
        )
        return (functional.softplus(logits) - logits * x - log_normaliser).flatten(-3).sum(-1)


class FixedSigma(nn.Module):
    """The standard deviation that the config says."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self._variance = sigma**2

    def forward(self, mse: Tensor) -> Tensor:
        """Its square.

        Shapes:  mse () -> ()
        """
        return mse.new_tensor(self._variance)


class LearnedSigma(nn.Module):
    """A standard deviation that is a weight like others, from half a grey level up."""

    def __init__(self) -> None:
        super().__init__()
        self.log_above_floor = nn.Parameter(torch.tensor(math.log(_FIRST_SIGMA - SIGMA_FLOOR)))

    def forward(self, mse: Tensor) -> Tensor:  # noqa: ARG002  # the error reaches it through its gradient
        """Its square.

        Shapes:  mse () -> ()
        """
        return (SIGMA_FLOOR + self.log_above_floor.exp()).square()


class OptimalSigma(nn.Module):
    """The standard deviation under which the pictures at hand are likeliest: the root of their mean squared error.

    In training it is that of each batch; a running mean of it is kept, and is what holds in evaluation.

    Source:  Rybkin et al. 2021, equation 4, arXiv:2006.13202
    """

    running: Tensor
    updates: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running", torch.tensor(_FIRST_SIGMA**2))
        self.register_buffer("updates", torch.tensor(0))

    def forward(self, mse: Tensor) -> Tensor:
        """Its square: that of the batch in training mode, the running one otherwise.

        Shapes:  mse () -> ()
        """
        if not self.training:
            return self.running
        variance = mse.clamp(min=SIGMA_FLOOR**2)
        with torch.no_grad():
            self.updates += 1
            self.running.lerp_(variance.detach(), (1 / self.updates).clamp(min=1 / _MEMORY_STEPS))
        return variance


class Gaussian(nn.Module):
    """A density over grey and colour pictures with one standard deviation for all pixels.

    Source:  Rybkin et al. 2021, section 3, arXiv:2006.13202
    """

    is_mass = False

    def __init__(self, sigma: FixedSigma | LearnedSigma | OptimalSigma, *, levels: Levels) -> None:
        super().__init__()
        self.sigma = sigma
        self.levels = levels

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The pictures as training sees them, as `Levels.draw` gives them."""
        return self.levels.draw(x, generator)

    def settle(self, x: Tensor) -> Tensor:
        """The pictures as `Levels.settle` gives them."""
        return self.levels.settle(x)

    def mean(self, logits: Tensor) -> Tensor:
        """The mean of p(x given z), in [0, 1]."""
        return self.levels.picture(torch.sigmoid(logits))

    def recon(self, logits: Tensor, x: Tensor) -> Tensor:
        """-log p(x given z), one value per row.

        Shapes:  logits (*k, n, c, h, w), x (n, c, h, w) -> (*k, n)
        Units:   nats, summed over data dimensions
        Raises:  ValueError if x has another shape than the rows of logits
        """
        _same_rows(logits, x)
        dims = math.prod(x.shape[-3:])
        squared_distance = (x - torch.sigmoid(logits)).square().flatten(-3).sum(-1)
        variance: Tensor = self.sigma(squared_distance.mean() / dims)
        return 0.5 * (squared_distance / variance + dims * (torch.log(variance) + _LOG_2_PI))


class DiscretisedLogistic(nn.Module):
    """A mass over the 256 grey levels: a logistic density, integrated over each level's interval.

    Its location is 1/2 + logits / 4, the sigmoid's tangent, so that it may lie beyond black and white, where the
    outermost levels reach to infinity. Its scale is one weight, from half a grey level up.

    Source:  Kingma et al. 2016, section 5.2 and appendix, arXiv:1606.04934
    """

    is_mass = True

    def __init__(self) -> None:
        super().__init__()
        self.log_above_floor = nn.Parameter(torch.tensor(math.log(_FIRST_SIGMA - SIGMA_FLOOR)))

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002  # nothing to draw here
        """The pictures as they are."""
        return x

    def settle(self, x: Tensor) -> Tensor:
        """The pictures as they are."""
        return x

    def scale(self) -> Tensor:
        """The logistic's scale, where 1 is black to white."""
        scale: Tensor = SIGMA_FLOOR + self.log_above_floor.exp()
        return scale

    def mean(self, logits: Tensor) -> Tensor:
        """The mean of p(x given z), in [0, 1].

        It is the sum of P(level ≥ k) / 255 over k from 1 to 255, here as the integral that is the sum's midpoint rule:
        within a thousandth of a grey level where location and scale lie inside, and within a fortieth where a location
        at black or white meets the smallest scale.
        """
        location, scale = _location(logits), self.scale()
        mean: Tensor = scale * (functional.softplus(location / scale) - functional.softplus((location - 1) / scale))
        return mean.clamp(0, 1)  # which rounding leaves

    def recon(self, logits: Tensor, x: Tensor) -> Tensor:
        """-log p(x given z), one value per row.

        Shapes:  logits (*k, n, c, h, w), x (n, c, h, w), multiples of 1/255 -> (*k, n)
        Units:   nats, summed over data dimensions
        Raises:  ValueError if x has another shape than the rows of logits
        """
        _same_rows(logits, x)
        location, scale = _location(logits), self.scale()
        below = functional.logsigmoid((x + 1 / 510 - location) / scale)  # log P of this level or a darker one
        above = functional.logsigmoid((location - x + 1 / 510) / scale)  # log P of this level or a lighter one
        # sigmoid(a) - sigmoid(b) is sigmoid(a) sigmoid(-b) (1 - exp(b - a)), which loses no digits where a is near b.
        within = below + above + torch.log(-torch.expm1(-1 / (255 * scale)))
        return -torch.where(x <= 0, below, torch.where(x >= 1, above, within)).flatten(-3).sum(-1)


Likelihood = Bernoulli | ContinuousBernoulli | Gaussian | DiscretisedLogistic


def _location(logits: Tensor) -> Tensor:
    return 0.5 + logits / 4


def _uniform(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(x.shape, generator=generator, device=x.device)


def _same_rows(logits: Tensor, x: Tensor) -> None:
    if logits.shape[-4:] != x.shape:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected that of logits' rows, {tuple(logits.shape[-4:])}")
