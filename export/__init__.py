import os

# onnxruntime's wheels for Linux send telemetry and write to the home directory unless told so before the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
