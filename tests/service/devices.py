"""What this machine's onnxruntime can compute on."""

import onnxruntime as ort

NO_CUDA = "CUDAExecutionProvider" not in ort.get_available_providers()
