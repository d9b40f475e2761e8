"""Every number and name that an operator may turn, in one frozen object."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

SHIPPED_BUNDLE = Path(__file__).parent / "bundles" / "fashion"


class Settings(BaseSettings):
    """How this process serves. What belongs to a model is in its manifest and never here."""

    model_config = SettingsConfigDict(env_prefix="VAE_", frozen=True, extra="forbid")

    bundles: tuple[Path, ...] = Field(
        (SHIPPED_BUNDLE,),
        min_length=1,
        description="Bundles to serve, folders or zips; the first is the default. Without one: the shipped model.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Where graphs run; auto takes a GPU where there is one and onnxruntime brings CUDA, and says so.",
    )
    threads: int = Field(
        0, ge=0, description="Threads of one run on CPU; 0 takes as many as this process may use cores."
    )
    max_batch_rows: int = Field(32, ge=2, le=65536, description="Most rows in one run of a graph.")
    max_run_pixels: int = Field(
        2_000_000, ge=1, description="Most pixels in one run of a graph, over all its rows; one row is always run."
    )
    max_request_rows: int = Field(
        4096, ge=1, description="Most rows (engine rows, over all graphs) that one request may cost."
    )
    max_queue_rows: int = Field(
        16384, ge=1, description="Most rows admitted at a time; a request beyond them gets 429."
    )
    max_body_bytes: int = Field(64 * 2**20, ge=1, description="Largest request body, in bytes.")
    max_picture_pixels: int = Field(
        40_000_000, ge=1, description="Largest picture that is decoded, in pixels, seen before decoding."
    )
    max_answer_pixels: int = Field(
        64_000_000,
        ge=1,
        description="Largest answer in pictures, in pixels after enlarging, over all of them.",
    )
    log_level: Literal["critical", "error", "warning", "info", "debug"] = Field(
        "info", description="Least severe line that is logged."
    )
    access_log: bool = Field(False, description="Log one line per request.")
