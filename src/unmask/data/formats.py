"""Which format an image file has, by its first bytes."""

from __future__ import annotations


def image_extension(content: bytes) -> str | None:
    """The usual extension of a file that begins so; None where it is none of the formats that are decoded."""
    if content[:3] == b"\xff\xd8\xff":
        return "jpg"
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tif"
    if content[:6] == b"\x93NUMPY":
        return "npy"
    if content[128:132] == b"DICM":
        return "dcm"
    if content[:2] == b"BM":
        return "bmp"
    return None
