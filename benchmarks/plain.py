"""The yardstick: plain FastAPI handlers, as people write them, that call onnxruntime once per request.

Run as `BUNDLE=service/bundles/fashion uvicorn benchmarks.plain:app`. THREADS=1 is what one turns who has read
onnxruntime's advice: so many threads to a run, and none that spins between runs.
"""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import onnxruntime
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from PIL import Image
from pydantic import BaseModel

app = FastAPI()
options = onnxruntime.SessionOptions()
if "THREADS" in os.environ:
    options.intra_op_num_threads = int(os.environ["THREADS"])
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
encoder, decoder = (
    onnxruntime.InferenceSession(Path(os.environ["BUNDLE"]) / graph, options, providers=["CPUExecutionProvider"])
    for graph in ("encoder.onnx", "decoder.onnx")
)
height, width, channels = encoder.get_inputs()[0].shape[1:]


class Posterior(BaseModel):
    """The answer: one row each, as `/encode` answers one picture."""

    mu: list[list[float]]
    logvar: list[list[float]]


class Latents(BaseModel):
    """What is decoded: one row."""

    z: list[list[float]]


def posterior(body: bytes) -> Posterior:
    """Decode the picture, run, and turn into lists."""
    picture = Image.open(BytesIO(body)).convert("L" if channels == 1 else "RGB")
    image = np.asarray(picture).reshape(1, height, width, channels)
    mu, logvar = encoder.run(["mu", "logvar"], {"image": image})
    return Posterior(mu=mu.tolist(), logvar=logvar.tolist())


def picture(latents: Latents) -> bytes:
    """Run, and write with Pillow's defaults."""
    (image,) = decoder.run(["image"], {"z": np.array(latents.z, np.float32)})
    file = BytesIO()
    Image.fromarray(image[0].squeeze()).save(file, "PNG")
    return file.getvalue()


@app.post("/encode")
async def encode(request: Request) -> Posterior:
    """Posterior of one picture."""
    return await run_in_threadpool(posterior, await request.body())


@app.post("/decode")
async def decode(latents: Latents) -> Response:
    """Picture of one latent."""
    return Response(await run_in_threadpool(picture, latents), media_type="image/png")


@app.get("/health/ready")
async def ready() -> dict[str, bool]:
    """Whether the server answers."""
    return {"ready": True}
