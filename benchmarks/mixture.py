"""Requests to all verbs and pages of the service, in all forms in and out, as far as a model knows them."""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection

import numpy as np
from safetensors.numpy import save

from benchmarks import pictures
from benchmarks.connections import Answer, as_bytes
from benchmarks.requests import FORM, JSON, PNG, SAFETENSORS, multipart
from benchmarks.servers import HOST, Request, Server
from benchmarks.subjects import Subject

_MEDIA_TYPES = {
    "json": JSON, "png": PNG, "webp": "image/webp", "jpeg": "image/jpeg", "gif": "image/gif", "apng": "image/apng",
    "safetensors": SAFETENSORS,
}  # fmt: skip
_STILL = ("png", "webp", "jpeg", "json", "safetensors")
_MOVING = (*_STILL, "gif", "apng")
_NUMBERS = ("json", "safetensors")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request and how it must be answered."""

    request: bytes
    status: int
    media_type: str | None

    def is_answered_by(self, answer: Answer) -> bool:
        """Whether status and media type are those that were asked for."""
        found = answer.header("content-type")
        return answer.status == self.status and (self.media_type is None or (found or "").startswith(self.media_type))


def mixture(server: Server, subject: Subject, *, variants: int) -> list[Asked]:
    """All kinds of requests in random order, each in so many variants: with other pictures, latents and seeds."""
    asked = [each for variant in range(variants) for each in _variant(server, subject, variant)]
    return [asked[place] for place in np.random.default_rng(0).permutation(len(asked))]


def _variant(server: Server, subject: Subject, variant: int) -> Iterator[Asked]:
    for page, media_type in _pages(subject):
        yield Asked(as_bytes(Request(page)), 200, media_type)
    for path in _addresses(subject, variant):
        yield Asked(as_bytes(Request(path)), 200, _asked_form(path))
        yield Asked(as_bytes(Request(path), f"If-None-Match: {_etag(server, path)}"), 304, None)
    for request in _bodies(subject, variant):
        yield Asked(as_bytes(request), 200, _asked_form(request.path))


def _asked_form(path: str) -> str:
    return _MEDIA_TYPES[path.rpartition("format=")[2]]


def _pages(subject: Subject) -> Iterator[tuple[str, str]]:
    for page in ("/models", f"/models/{subject.name}", "/health/live", "/health/ready", "/openapi.json"):
        yield page, JSON
    yield "/metrics", "text/plain"
    yield "/docs", "text/html"
    if (subject.bundle / "card.md").exists():
        yield f"/models/{subject.name}/card", "text/html"


def _addresses(subject: Subject, seed: int) -> Iterator[str]:
    """GETs that may be kept."""
    for form in _STILL:
        yield f"/sample?seed={seed}&n=5&scale=2&format={form}"
    for form in _MOVING:
        yield f"/interpolate?seeds={seed},{seed + 1}&steps=5&format={form}"
        yield f"/traverse?seed={seed}&dims=0,1&steps=4&format={form}"
    if (subject.bundle / "prior.safetensors").exists():
        yield f"/sample?seed={seed}&n=3&prior=fitted&format=png"


def _bodies(subject: Subject, variant: int) -> Iterator[Request]:
    """POSTs in every form that a body may have."""
    images, z = np.roll(subject.images, variant, axis=0)[:3], np.roll(subject.z, variant, axis=0)[:3]
    pngs = [pictures.as_png(image) for image in images]
    listed = [base64.b64encode(png).decode() for png in pngs]
    has_scorer = (subject.bundle / "scorer.onnx").exists()
    for form in _NUMBERS:
        asked = f"format={form}"
        yield Request(f"/encode?{asked}", PNG, pngs[0])
        yield Request(f"/encode?{asked}", FORM, multipart("images", pngs))
        yield Request(f"/encode?draws=2&seed={variant}&{asked}", JSON, _document(images=listed))
        yield Request(f"/encode?dtype=float16&{asked}", SAFETENSORS, save({"images": images}))
        if has_scorer:
            yield Request(f"/score?{asked}", PNG, pngs[0])
            yield Request(f"/score?k=2&seed={variant}&{asked}", FORM, multipart("images", pngs))
    for kind in ("jpeg", "webp", "bmp", "gif", "tiff"):
        yield Request("/encode?format=json", f"image/{kind}", pictures.saved(images[0], kind))
    for form in _STILL:
        asked = f"format={form}"
        yield Request(f"/sample?{asked}", JSON, _document(n=4, temperature=0.5))
        yield Request(f"/decode?{asked}", JSON, _document(z=z.tolist()))
        yield Request(f"/decode?{asked}", SAFETENSORS, save({"z": z}))
        yield Request(f"/reconstruct?{asked}", PNG, pngs[0])
        yield Request(f"/reconstruct?compare=true&{asked}", FORM, multipart("images", pngs))
    for form in _MOVING:
        asked = f"steps=4&format={form}"
        yield Request(f"/interpolate?{asked}", FORM, multipart("images", pngs[:2]))
        yield Request(f"/interpolate?method=slerp&{asked}", SAFETENSORS, save({"z": z}))
        yield Request(f"/interpolate?{asked}", JSON, _document(points=[{"image": listed[0]}, {"seed": variant}]))
        yield Request(f"/traverse?dims=1&{asked}", PNG, pngs[0])
    yield Request("/sample?format=png", JSON, b"{}")


def _document(**members: object) -> bytes:
    return json.dumps(members).encode()


def _etag(server: Server, path: str) -> str:
    connection = HTTPConnection(HOST, server.port, timeout=60)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        return answer.headers["ETag"]
    finally:
        connection.close()
