"""Every number and name that an operator may turn, in one frozen object."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

SHIPPED_BUNDLE = Path(__file__).parent / "bundles" / "fashion"

# As browsers send it: a scheme and a host in lower case, a port where it is not the scheme's own, no path.
_ORIGIN = re.compile(r"\*|https?://[a-z0-9.\-\[\]:]+")

# As many workers as the machine can feed.
AUTO = 0


def _workers(sent: Any) -> Any:
    return AUTO if sent == "auto" else sent


def _listed(sent: Any) -> Any:
    """What an environment variable holds as a list, and a flag as it is."""
    if not isinstance(sent, str):
        return sent
    try:
        return json.loads(sent)
    except ValueError as error:
        raise ValueError(f'expected a JSON list, as ["{sent}"]') from error


class Settings(BaseSettings):
    """How this process serves. What belongs to a model is in its manifest and never here."""

    model_config = SettingsConfigDict(env_prefix="VAE_", frozen=True, extra="forbid")

    bundles: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_listed)] = Field(
        (SHIPPED_BUNDLE,),
        min_length=1,
        description="Bundles to serve, folders or zips; the first is the default. Without one: the shipped model.",
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one.")
    workers: Annotated[int, BeforeValidator(_workers)] = Field(
        1,
        ge=0,
        description="Processes that serve; auto (or 0) takes as many as the cores can feed.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Where graphs run; auto takes a GPU where there is one and onnxruntime brings CUDA, and says so.",
    )
    precision: Literal["fp32", "bf16", "auto"] = Field(
        "fp32",
        description="What graphs in fp32 run in on CPU; bf16 needs vaeserve[openvino] and a CPU that multiplies it; "
        "auto takes it where both are there and the bundle keeps to its bound, and says so.",
    )
    threads: int = Field(
        0, ge=0, description="Threads of one run on CPU; 0 takes one where rows are small, else all cores there are."
    )
    max_batch_rows: int = Field(64, ge=2, le=65536, description="Most rows in one run of a graph.")
    max_run_pixels: int = Field(
        2_000_000, ge=1, description="Most pixels in one run of a graph, over all its rows; one row is always run."
    )
    max_request_rows: int = Field(
        4096, ge=1, description="Most rows (engine rows, over all graphs) that one request may cost."
    )
    max_queue_rows: int = Field(
        16384, ge=1, description="Most rows admitted at a time; a request beyond them gets 429."
    )
    timeout_ms: int = Field(
        120_000, ge=1, description="Time for a request that sends no X-Timeout-Ms, in milliseconds; then it gets 504."
    )
    max_timeout_ms: int = Field(
        600_000, ge=1, description="Longest time that X-Timeout-Ms can ask for, in milliseconds."
    )
    wedge_timeout_s: int = Field(
        60,
        ge=1,
        description="A run of a graph that takes longer than this, in seconds, and 20 times what was expected, "
        "is taken for stuck: the process says that it is not alive, and ends. A worker that stands still so long too.",
    )
    max_body_bytes: int = Field(64 * 2**20, ge=1, description="Largest request body, in bytes.")
    max_json_bytes: int = Field(8 * 2**20, ge=1, description="Largest request body of JSON, in bytes.")
    max_picture_pixels: int = Field(
        40_000_000, ge=1, description="Largest picture that is decoded, in pixels, seen before decoding."
    )
    max_answer_pixels: int = Field(
        64_000_000,
        ge=1,
        description="Largest answer in pictures, in pixels after enlarging, over all of them.",
    )
    max_connections: int = Field(
        1000, ge=1, description="Most connections in use at a time, of each process; one beyond them gets 503."
    )
    max_head_bytes: int = Field(
        32 * 2**10, ge=2**10, le=2**16 - 1, description="Longest head of a request, its address and headers, in bytes."
    )
    head_timeout_s: int = Field(
        10,
        ge=1,
        description="Seconds in which a connection must have sent a request's head; then it is closed.",
    )
    keep_alive_s: int = Field(
        5,
        ge=1,
        description="Seconds that a connection may rest after an answer; a balancer that keeps it must rest less.",
    )
    transfer_timeout_s: int = Field(
        20, ge=1, description="Seconds that a body may take to come, or an answer to be read, at whatever rate."
    )
    min_bytes_per_s: int = Field(
        1000, ge=1, description="Least bytes a second of a body or an answer that takes longer than that."
    )
    api_keys_file: Path | None = Field(
        None, description="File with the hashes of keys that callers must show; without it everybody is let in."
    )
    open_metrics: bool = Field(False, description="Where keys are on, answer /metrics without one.")
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)] = Field(
        (), description="Origins whose pages may ask from a browser, as https://example.org; * for all."
    )
    shutdown_pause_s: int = Field(
        1, ge=0, description="Seconds that a process told to end still takes requests, not ready any more."
    )
    shutdown_timeout_s: int = Field(
        25, ge=1, description="Seconds, pause included, after which a process told to end is gone, finished or not."
    )
    log_level: Literal["critical", "error", "warning", "info", "debug"] = Field(
        "info", description="Least severe line that is logged."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Lines of the log, for people or one JSON object each."
    )
    access_log: bool = Field(False, description="Log one line per request, to standard output.")
    traces: bool = Field(
        False,
        description="Send OpenTelemetry traces to where OTEL_EXPORTER_OTLP_ENDPOINT says; needs vaeserve[traces].",
    )

    @property
    def is_keyed(self) -> bool:
        """Whether callers must show a key."""
        return self.api_keys_file is not None

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"expected origins as https://example.org or http://localhost:3000, or *, not {origin!r}"
                )
        return origins

    @field_validator("shutdown_timeout_s")
    @classmethod
    def _longer_than_the_pause(cls, timeout_s: int, info: ValidationInfo) -> int:
        pause_s = info.data.get("shutdown_pause_s", 0)
        if timeout_s < pause_s + 2:
            raise ValueError(f"expected at least two more than shutdown_pause_s, which is {pause_s}")
        return timeout_s
