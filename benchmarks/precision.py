"""What fp16 and int8 gain and lose: a plain, a residual and a transposed-convolution model, trained for a moment.

Run as `python -m benchmarks.precision [PATH] [--steps N]`; without PATH, on scikit-learn's digits. Pictures are
enlarged to about 64×64, where convolutions dominate. Throughput is that of the graphs in onnxruntime at 16 rows, on the
threads that the service takes, reduced and fp32 in turn.
"""

from argparse import ArgumentParser
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from benchmarks import results
from export.frozen import Described, Frozen
from export.graphs import freeze, source
from export.importers.checkpoint import Decoder, Encoder
from export.precision import Loss, measure_reduced, reduce, variant
from model import data
from model.networks.presets import PRESETS
from model.networks.pyramid import Shape, pyramid
from model.parts import Images
from model.training import Learner, TrainConfig
from model.vae import VAE, ModelConfig
from service.manifest import ImageSpec, Source, Variant

SIDE = 64
NETWORKS = {"plain": ("small", 64), "residual": ("residual", 32), "transposed": ("transposed", 64)}
LATENT_DIM = 32
BATCH_SIZE = 32
PICTURES = 256


class TransposedDecoder(nn.Module):
    """Latents to logits, every step up a transposed convolution, as in DCGAN.

    Shapes:  z (n, latent_dim) -> logits (n, c, h, w)
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.sizes = pyramid(shape.height, shape.width)[::-1]
        widths = [shape.features * min(stages, 3) for stages in range(len(self.sizes), 1, -1)]
        self.bottom_shape = (widths[0], *self.sizes[0])
        self.dense = nn.Linear(shape.latent_dim, widths[0] * self.sizes[0][0] * self.sizes[0][1])
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
            for before, after in pairwise([*widths, shape.channels])
        )

    def forward(self, z: Tensor) -> Tensor:
        """As the class says."""
        features: Tensor = self.dense(z).reshape(-1, *self.bottom_shape)
        for convolution, (height, width) in zip(self.up, self.sizes[1:], strict=True):
            features = convolution(functional.relu(features))[:, :, :height, :width]
        return features


@dataclass(frozen=True)
class Found:
    """What was measured of one network in one precision."""

    network: str
    precision: str
    loss: Loss
    variant: Variant


def main() -> None:
    """Measure, print a table, keep the figures as JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", type=Path, help="what `vae-train fit --data` takes (default: digits)")
    parser.add_argument("--steps", type=int, default=200, help="of training each network")
    parser.add_argument("--network", action="append", choices=list(NETWORKS), help="to measure (default: all)")
    arguments = parser.parse_args()
    # For this process alone: the package has no network with transposed convolutions.
    PRESETS["transposed"] = replace(PRESETS["small"], decoder=TransposedDecoder, features=64)
    dataset = data.read(arguments.path)
    train, test = enlarged(dataset.train), enlarged(dataset.test)
    found = []
    for network in arguments.network or NETWORKS:
        frozen = trained(network, train, steps=arguments.steps)
        for precision in ("fp16", "int8"):
            graphs = reduce(frozen, precision=precision, calibration=train[-PICTURES:])
            loss = measure_reduced(frozen, graphs, pictures=test[:PICTURES])
            found.append(Found(network, precision, loss, variant(frozen, graphs)))
    shape = "×".join(map(str, train.shape[1:]))
    print(f"{dataset.name} at {shape}, {arguments.steps} steps of training; {results.on_machine()}\n")
    print(results.table(("network", "precision", "encode", "decode", "PSNR dB", "mu in sigma", "size"), rows(found)))
    content = {"data": dataset.name, "shape": shape, "steps": arguments.steps, "found": plain(found)}
    print("\n" + results.keep("precision", content, lacks=NETWORKS.keys() - {one.network for one in found}))


def enlarged(images: Images) -> Images:
    """Pictures of about SIDE pixels, each pixel repeated."""
    times = max(1, SIDE // images.shape[1])
    return images.repeat(times, axis=1).repeat(times, axis=2)


def trained(network: str, images: Images, *, steps: int) -> Frozen:
    """A network after so many steps, frozen."""
    height, width, channels = images.shape[1:]
    preset, features = NETWORKS[network]
    config = ModelConfig(height, width, channels, latent_dim=LATENT_DIM, preset=preset, features=features)
    training = TrainConfig(epochs=10_000, batch_size=BATCH_SIZE, lr_warmup_steps=20, average_decay=0.95)
    learner = Learner(config, training=training, n_images=len(images))
    for _ in islice(learner.run(images), steps):
        pass
    return frozen(learner.average)


def frozen(vae: VAE) -> Frozen:
    """A model as an importer hands it over."""
    height, width, channels = vae.config.image_shape
    image, latent_shape = ImageSpec(height=height, width=width, channels=channels), (vae.config.latent_dim,)
    modules = Encoder(vae).eval(), Decoder(vae).eval(), None
    return Frozen(
        graphs=freeze(*modules, image=image, latent_shape=latent_shape),
        source=source(*modules),
        described=Described(
            family=vae.config.family,
            image=image,
            latent_shape=latent_shape,
            prior="standard",
            source=Source(kind="vaeserve", version=version("vaeserve"), network=vae.config.preset),
            scale_head=vae.config.scale_head,
        ),
    )


def rows(found: list[Found]) -> list[tuple[str, ...]]:
    """The table's rows."""
    return [
        (
            one.network,
            one.precision,
            f"{one.variant.encoder_speedup:.2f}",
            f"{one.variant.decoder_speedup:.2f}",
            f"{one.loss.psnr_db:.1f}",
            f"{one.loss.mu_in_sigma.mean:.3f}, at most {one.loss.mu_in_sigma.max:.2f}",
            f"{one.variant.size_ratio:.2f}",
        )
        for one in found
    ]


def plain(found: list[Found]) -> list[dict[str, Any]]:
    """What JSON keeps of it."""
    return [
        {
            "network": one.network,
            "precision": one.precision,
            "psnr_db": one.loss.psnr_db,
            "mu_in_sigma": one.loss.mu_in_sigma.model_dump(),
            **one.variant.model_dump(),
        }
        for one in found
    ]


if __name__ == "__main__":
    main()
