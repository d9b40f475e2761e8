"""The whole line, each part as its user starts it: train, freeze, pack, serve, ask."""

import subprocess
import sys
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from model import checkpoint
from tests.serving import serving


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of an epoch on scikit-learn's digits, and its bundle in one file."""
    folder = tmp_path_factory.mktemp("line")
    run, bundle = folder / "run", folder / "bundle"
    _command("model", "fit", "--out", run, "--epochs", 1, "--features", 8, "--latent-dim", 3)
    _command("export", "make", run, bundle, "--name", "digits", "--licence", "MIT")
    _command("export", "pack", bundle)
    return run, folder / "bundle.zip"


def test_a_trained_model_answers_over_http_what_torch_answers(line: tuple[Path, Path]) -> None:
    run, bundle = line
    trained = checkpoint.read(run)
    pictures = trained.probe[:5]
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(torch.float32) / 255
    with torch.inference_mode():
        posterior = trained.vae.encode(x)
    with serving([str(bundle)]) as server, httpx.Client(base_url=server.url) as client:
        files = [("images", (f"{index}.png", _png(picture))) for index, picture in enumerate(pictures)]
        encoded = client.post("/encode", files=files).raise_for_status().json()
        score = client.post("/score", files=files).raise_for_status().json()
        np.testing.assert_allclose(encoded["mu"], posterior.mu, atol=1e-4)
        np.testing.assert_allclose(encoded["logvar"], posterior.logvar, atol=1e-4)
        answer = client.post("/decode", params={"columns": 1}, json={"z": encoded["mu"]}).raise_for_status()
        decoded = np.asarray(Image.open(BytesIO(answer.content))).reshape(pictures.shape)
    with torch.inference_mode():
        x_hat = trained.vae.decode(torch.tensor(encoded["mu"]))
        recon = trained.vae.likelihood.recon(trained.vae.logits(posterior.mu), x)
    np.testing.assert_allclose(score["recon"], recon, rtol=1e-4)
    np.testing.assert_allclose(score["kl"], posterior.kl(), rtol=1e-4)
    expected = torch.round(x_hat * 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(decoded - expected).max() <= 1


def test_a_strip_between_two_seeds_starts_and_ends_at_their_samples(line: tuple[Path, Path]) -> None:
    _, bundle = line
    with serving([str(bundle)]) as server, httpx.Client(base_url=server.url) as client:
        strip = _open(client.get("/interpolate", params={"seeds": "3,14", "steps": 5}))
        first, last = (_open(client.get("/sample", params={"seed": seed})) for seed in (3, 14))
    assert strip.shape == (8, 5 * 8)
    assert np.abs(strip[:, :8].astype(int) - first).max() <= 1
    assert np.abs(strip[:, -8:].astype(int) - last).max() <= 1


def _command(package: str, *arguments: object) -> None:
    command = [sys.executable, "-m", package, *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def _png(picture: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(picture[..., 0]).save(file, "PNG")
    return file.getvalue()


def _open(answer: httpx.Response) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(answer.raise_for_status().content)))
