"""What every decoder refuses, and how: images that are too large by their header, and all that is damaged."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 64_000_000
"""Larger images are refused by their header: a small file can hold an image that fills the memory."""
MAX_BYTES = 8 * MAX_PIXELS
"""The same for all channels together: the most pixels, in four channels of 16 bits each."""


_LONGEST = 200  # letters of what a library says


class DecodeError(ValueError):
    """An image that cannot be used; the message says why in a few words."""


@contextmanager
def decode_errors() -> Iterator[None]:
    """Make one error of all that a damaged file can provoke, and keep the libraries' warnings quiet."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DecodeError:
        raise
    except Image.DecompressionBombError as error:
        raise DecodeError(f"it has more than the {MAX_PIXELS} pixels allowed") from error
    except UnidentifiedImageError as error:
        raise DecodeError("it is not an image of a known format") from error
    # Readers raise nearly anything on damaged bytes: SyntaxError, struct.error, IndexError ...
    except Exception as error:
        raise DecodeError(f"it cannot be decoded: {' '.join(str(error).split())[:_LONGEST]}") from error


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Without what a library's logger `name` says of damaged files, past us, on stderr."""
    log, nowhere = logging.getLogger(name), logging.NullHandler()
    before, log.propagate = log.propagate, False
    log.addHandler(nowhere)
    try:
        yield
    finally:
        log.removeHandler(nowhere)
        log.propagate = before


def check_size(height: int, width: int, bytes_a_pixel: int = 1) -> None:
    """DecodeError where an image of this size is larger than is allowed."""
    if width * height > MAX_PIXELS:
        raise DecodeError(f"it has {width} x {height} pixels, more than the {MAX_PIXELS} allowed")
    if width * height * bytes_a_pixel > MAX_BYTES:
        raise DecodeError(
            f"it has {width} x {height} pixels of {bytes_a_pixel} bytes each, more than the {MAX_BYTES} bytes allowed"
        )
