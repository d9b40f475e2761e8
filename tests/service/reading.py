"""A picture as a request's is opened: looked at, then opened as what it was seen to be."""

from service import images


def open_picture(data: bytes, *, where: str, max_pixels: int) -> images.Opened:
    """A picture whose header has been read and whose pixels have not."""
    found = images.look(data, where=where, max_pixels=max_pixels)
    return images.open_as(found, data, where=where, max_pixels=max_pixels)
