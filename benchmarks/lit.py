"""LitServe with its own batching, near its defaults; pictures come as multipart forms, which is how it takes files.

Run as `BUNDLE=service/bundles/fashion python benchmarks/lit.py PORT` in an environment with litserve, onnxruntime,
pillow and python-multipart. Nothing of ours is imported.
"""

import os
import sys
from pathlib import Path
from typing import Any

import litserve
import numpy as np
import onnxruntime
from fastapi import Request
from PIL import Image

MOST_ROWS = 32
WAIT_S = 0.001  # measured best; at its default, 0, an idle worker polls without pause and takes a core


class Encode(litserve.LitAPI):  # type: ignore[misc]
    """One picture to its posterior."""

    def setup(self, device: str) -> None:  # noqa: ARG002  # LitServe's signature
        """Load the graph, in the worker."""
        self.session = onnxruntime.InferenceSession(Path(os.environ["BUNDLE"]) / "encoder.onnx")
        self.shape = self.session.get_inputs()[0].shape[1:]

    def decode_request(self, request: Request) -> Any:
        """The picture of a form's part `image`; LitServe hands over the form of what is annotated as a request."""
        picture = Image.open(request["image"].file).convert("L" if self.shape[2] == 1 else "RGB")
        return np.asarray(picture).reshape(self.shape)

    def batch(self, inputs: Any) -> Any:
        """What waits, as one array."""
        return np.stack(inputs)

    def predict(self, x: Any) -> Any:
        """mu and logvar of a batch."""
        return self.session.run(["mu", "logvar"], {"image": x})

    def unbatch(self, output: Any) -> Any:
        """A pair for each row."""
        return list(zip(*output, strict=True))

    def encode_response(self, output: Any) -> dict[str, list[list[float]]]:
        """As `/encode` answers one picture."""
        mu, logvar = output
        return {"mu": [mu.tolist()], "logvar": [logvar.tolist()]}


if __name__ == "__main__":
    server = litserve.LitServer(
        Encode(max_batch_size=MOST_ROWS, batch_timeout=WAIT_S, api_path="/encode"), accelerator="cpu"
    )
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False, generate_client_file=False
    )
