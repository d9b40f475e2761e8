"""The yardstick: a plain FastAPI handler, as people write it, that calls onnxruntime once per request.

Run as `BUNDLE=service/bundles/fashion uvicorn benchmarks.plain:app`.
"""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import onnxruntime
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image
from pydantic import BaseModel

app = FastAPI()
session = onnxruntime.InferenceSession(Path(os.environ["BUNDLE"]) / "encoder.onnx", providers=["CPUExecutionProvider"])
height, width, channels = session.get_inputs()[0].shape[1:]


class Posterior(BaseModel):
    """The answer: one row each, as `/encode` answers one picture."""

    mu: list[list[float]]
    logvar: list[list[float]]


def posterior(body: bytes) -> Posterior:
    """Decode, run, and turn into lists."""
    picture = Image.open(BytesIO(body)).convert("L" if channels == 1 else "RGB")
    image = np.asarray(picture).reshape(1, height, width, channels)
    mu, logvar = session.run(["mu", "logvar"], {"image": image})
    return Posterior(mu=mu.tolist(), logvar=logvar.tolist())


@app.post("/encode")
async def encode(request: Request) -> Posterior:
    """Posterior of one picture."""
    return await run_in_threadpool(posterior, await request.body())


@app.get("/health/ready")
async def ready() -> dict[str, bool]:
    """Whether the server answers."""
    return {"ready": True}
