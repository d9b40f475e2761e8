"""What pythae itself saves and answers, beside which the importer is tested; see README.md here.

Run as `python tests/export/pythae/save.py` in an environment of its own, which holds pythae 0.1.2.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pythae import models
from pythae.models.nn.benchmarks import celeba, cifar, mnist
from torch import Tensor, nn
from weights import LATENT_DIM, images, latents, weights

HERE = Path(__file__).resolve().parent
X_SHAPES = {"MNIST": (1, 28, 28), "CIFAR": (3, 32, 32), "CELEBA": (3, 64, 64)}


def main() -> None:
    """Write `saved/` and `answers.npz`."""
    torch.manual_seed(0)
    model = models.BetaVAE(models.BetaVAEConfig(input_dim=(3, 2, 3), latent_dim=2, reconstruction_loss="mse", beta=4))
    model.eval().save(str(HERE / "saved"))
    answers = answers_of("saved", model.encoder, model.decoder, x_shape=(3, 2, 3), latent_dim=2)
    x = x_of((3, 2, 3))
    x_hat = model.decoder(torch.from_numpy(latents(2))).reconstruction.detach()
    for loss in ("mse", "bce"):
        model.model_config.reconstruction_loss = loss
        zeros = torch.zeros(1, 2)
        answers[f"saved/{loss}"] = np.array(
            [
                model.loss_function(a[None], b[None], zeros, zeros, zeros)[1].item()
                for a, b in zip(x_hat, x, strict=True)
            ]
        )
    for module, data in ((mnist, "MNIST"), (cifar, "CIFAR"), (celeba, "CELEBA")):
        for kind in ("Conv", "ResNet"):
            config = models.VAEConfig(input_dim=X_SHAPES[data], latent_dim=LATENT_DIM)
            encoder = filled(getattr(module, f"Encoder_{kind}_VAE_{data}"), config)
            decoder = filled(getattr(module, f"Decoder_{kind}_AE_{data}"), config)
            answers |= answers_of(f"{kind} {data}", encoder, decoder, x_shape=X_SHAPES[data], latent_dim=LATENT_DIM)
    np.savez_compressed(HERE / "answers.npz", **answers)


def filled(network: Callable[[models.VAEConfig], nn.Module], config: models.VAEConfig) -> nn.Module:
    """A network of pythae's with the weights that the test gives ours."""
    built = network(config).eval()
    arrays = weights({key: tuple(tensor.shape) for key, tensor in built.state_dict().items()})
    built.load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()})
    return built


@torch.no_grad()
def answers_of(
    name: str, encoder: nn.Module, decoder: nn.Module, *, x_shape: tuple[int, int, int], latent_dim: int
) -> dict[str, np.ndarray]:
    """mu, logvar, and every fifteenth pixel of the reconstruction, which meets every phase of its strides."""
    posterior = encoder(x_of(x_shape))
    x_hat = decoder(torch.from_numpy(latents(latent_dim))).reconstruction
    return {
        f"{name}/mu": posterior.embedding.numpy(),
        f"{name}/logvar": posterior.log_covariance.numpy(),
        f"{name}/x_hat": x_hat[..., ::5, ::3].numpy(),
    }


def x_of(x_shape: tuple[int, int, int]) -> Tensor:
    """The test's pictures as pythae takes them."""
    return torch.from_numpy(images(x_shape)).permute(0, 3, 1, 2) / 255


if __name__ == "__main__":
    main()
