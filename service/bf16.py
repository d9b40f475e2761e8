"""bf16 on a CPU: what onnxruntime, processor and bundle must offer for it, and how OpenVINO is asked for it."""

import json
from collections.abc import Collection
from typing import Literal

from service.machine import BadEngine
from service.manifest import ReducedTolerance

Hint = Literal["f32", "bf16"]

PROVIDER = "OpenVINOExecutionProvider"

# How far answers may be from a bundle's probe: mu by a quarter of what a draw of z scatters anyway, where that is not
# next to nothing, sigma by about a quarter of itself, pictures by 2.6 of 255 grey levels, root mean square.
TOLERANCE = ReducedTolerance(mu_in_sigma=0.25, logvar=0.5, psnr_db=40.0)

# Instructions that multiply bf16; without them it could only be emulated.
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")


def require(*, device: str, graphs: str, providers: Collection[str], cpu_flags: Collection[str]) -> None:
    """Nothing, if graphs of this precision can run in bf16 on this device, by these providers, on this processor.

    Raises:  BadEngine that says what is missing
    """
    if PROVIDER not in providers:
        raise BadEngine(f"the installed onnxruntime has no {PROVIDER}, install vaeserve[openvino]")
    if device != "cpu":
        raise BadEngine(f"device is {device}, expected cpu")
    if not set(_INSTRUCTIONS) & set(cpu_flags):
        raise BadEngine(f"the processor has none of {', '.join(_INSTRUCTIONS)}, by which bf16 is quicker than fp32")
    if graphs != "fp32":
        raise BadEngine(f"the bundle's graphs are in {graphs}, expected fp32")


def options(hint: Hint, *, threads: int, runs: int) -> dict[str, str]:
    """OpenVINO's options for graphs that run in a precision, so many runs side by side on so many threads each.

    Source:  https://docs.openvino.ai/2025/openvino-workflow/running-inference/inference-devices-and-modes/cpu-device.html
    """
    asked = {
        "INFERENCE_PRECISION_HINT": hint,
        "NUM_STREAMS": str(runs),
        "INFERENCE_NUM_THREADS": str(runs * threads),
        # Pinned to cores, threads would not make way for those of other workers.
        "ENABLE_CPU_PINNING": "NO",
    }
    return {"device_type": "CPU", "load_config": json.dumps({"CPU": asked})}
