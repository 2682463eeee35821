"""Damage for files of every kind, and what a reader may do about it: give a value, or refuse in one sentence.

Damage is drawn by hypothesis: bytes are flipped, cut, put in, doubled, taken from another file or made extreme numbers;
values within JSON become others of wrong types, sizes and depths. The rest of a container (checksums, lengths) can be
made whole again, so that damage reaches what lies inside.
"""

from __future__ import annotations

import copy
import json
import resource
import struct
import time
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

CPU_SECONDS = 20
"""What reading one small file may take; a reader that hangs needs far more, a busy machine does not matter."""
MEMORY_MB = 1500
"""What reading small files may take at most: an image of as many pixels as are allowed, in a few copies."""

NUMBERS = tuple(
    struct.pack(f"{order}{kind}", value)
    for order in "<>"
    for kind, values in (
        ("B", (0, 1, 127, 255)),
        ("H", (0, 1, 0x7FFF, 0xFFFF)),
        ("I", (0, 1, 60_000, 0x7FFFFFFF, 0xFFFFFFFF)),
        ("Q", (0, 2**40, 2**63 - 1, 2**64 - 1)),
    )
    for value in values
)
"""Sizes and offsets as file formats write them, at their ends."""


def damaged(wholes: Mapping[str, bytes]) -> st.SearchStrategy[bytes]:
    """One of these files after one to four changes of its bytes; most hit its head, where the numbers are."""
    # Not arguments of the strategy, as hypothesis would print all of them.
    return st.composite(lambda draw: _damaged(draw, wholes))()


def _damaged(draw: st.DrawFn, wholes: Mapping[str, bytes]) -> bytes:
    names = sorted(wholes)
    content = bytearray(wholes[draw(st.sampled_from(names))])
    for _ in range(draw(st.integers(1, 4))):
        reach = draw(st.sampled_from((64, 512, len(content))))
        place = draw(st.integers(0, max(0, min(reach, len(content)) - 1)))
        length = draw(st.sampled_from((1, 2, 4, 8, 33, 300)))
        match draw(st.sampled_from(("flip", "set", "number", "cut", "remove", "put in", "double", "splice"))):
            case "flip":
                if content:
                    content[place] ^= 1 << draw(st.integers(0, 7))
            case "set":
                content[place : place + 1] = bytes([draw(st.integers(0, 255))])
            case "number":
                number = draw(st.sampled_from(NUMBERS))
                content[place : place + len(number)] = number
            case "cut":
                del content[draw(st.integers(0, len(content))) :]
            case "remove":
                del content[place : place + length]
            case "put in":
                content[place:place] = draw(st.binary(min_size=1, max_size=12))
            case "double":
                content[place:place] = content[place : place + length]
            case "splice":
                other = wholes[draw(st.sampled_from(names))]
                begin = draw(st.integers(0, len(other)))
                content[place : place + length] = other[begin : begin + length]
    return bytes(content)


def nested(depth: int) -> list[Any]:
    """A list in a list in a list."""
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def wrong_values() -> list[Any]:
    """What may stand where something else should, made anew, because some of it is changed in its turn.

    The last one stands for leaving it out.
    """
    return [
        None,
        True,
        -1,
        0,
        1,
        0.5,
        7,
        2**31,
        2**63,
        10**30,
        10**400,
        -(10**30),
        1e308,
        5e-324,
        float("nan"),
        float("inf"),
        "",
        "7",
        "text",
        "x" * 5000,
        "two\nlines",
        "\0",
        "\udcff",
        "\ud800",
        "\u202egnp.exe",
        "<script>alert(1)</script>",
        [],
        {},
        [1],
        ["text", None],
        {"odd": 1},
        [[0, 1], [2, 3]],
        nested(300),
        ...,
    ]


WRONG = len(wrong_values())
WRONG_TEXTS = (
    "[" * 100_000,
    '{"a":' * 50_000,
    "1" * 5000,
    "NaN",
    "1e999",
    "null",
    '"\ud800"',
    "",
    "{}",
    "[]",
    '{"format": 1}',
    "{]",
)
"""Whole texts in place of JSON: endlessly nested, without end, hardly there."""


def altered(whole: Any) -> st.SearchStrategy[Any]:
    """These JSON values with one to three of them, at any depth, replaced by others, left out, or joined by more."""
    return st.composite(lambda draw: _altered(draw, whole))()


def _altered(draw: st.DrawFn, whole: Any) -> Any:
    values = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        holder, key = None, None
        inside = values
        while isinstance(inside, dict | list) and inside:
            holder = inside
            key = draw(st.sampled_from(sorted(inside) if isinstance(inside, dict) else range(len(inside))))
            inside = holder[key]
            if draw(st.integers(0, 3)) == 0:
                break
        if holder is None:
            return wrong_values()[draw(st.integers(0, WRONG - 2))]
        wrong = wrong_values()[draw(st.integers(0, WRONG - 1))]
        if wrong is ...:
            del holder[key]
        elif isinstance(holder, dict) and draw(st.integers(0, 5)) == 0:
            holder["odd"] = wrong
        else:
            holder[key] = wrong
    return values


def wrong_texts() -> st.SearchStrategy[bytes]:
    """One of `WRONG_TEXTS`."""
    return st.integers(0, len(WRONG_TEXTS) - 1).map(lambda n: WRONG_TEXTS[n].encode("utf8", "surrogatepass"))


def altered_text(whole: Any) -> st.SearchStrategy[bytes]:
    """The same as the text of a JSON file, or damaged as text, or something else entirely."""
    text = json.dumps(whole).encode()
    return st.one_of(
        altered(whole).map(lambda values: json.dumps(values).encode()),
        damaged({"text": text, "nested": json.dumps(nested(50)).encode()}),
        wrong_texts(),
    )


def altered_lines(wholes: Sequence[Any]) -> st.SearchStrategy[bytes]:
    """A file of JSON lines, of which one is altered."""
    lines = [json.dumps(whole).encode() for whole in wholes]

    def put(place: int, line: bytes) -> bytes:
        return b"\n".join([*lines[:place], line, *lines[place + 1 :]]) + b"\n"

    return st.one_of(
        *(altered_text(whole).map(lambda line, place=place: put(place, line)) for place, whole in enumerate(wholes)),
        damaged({"lines": b"\n".join(lines) + b"\n"}),
    )


def parts_of_safetensors(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and the bytes of its tensors."""
    (length,) = struct.unpack_from("<Q", content)
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    return header, content[8 + length :]


def safetensors_of(header: Any, data: bytes) -> bytes:
    """The file of a header and the bytes of tensors, whether they fit together or not."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def altered_safetensors(
    content: bytes, inner: str, reseal: Callable[[dict[str, str]], dict[str, str]] = lambda metadata: metadata
) -> st.SearchStrategy[bytes]:
    """A safetensors file with damaged bytes, an altered header, or altered JSON under `inner` in its metadata.

    `reseal` makes checksums within the metadata right again.
    """
    header, data = parts_of_safetensors(content)
    told = json.loads(header["__metadata__"][inner])

    def with_told(text: bytes) -> bytes:
        metadata = reseal({**header["__metadata__"], inner: text.decode("utf8", "replace")})
        return safetensors_of({**header, "__metadata__": metadata}, data)

    return st.one_of(
        altered(told).map(lambda values: with_told(json.dumps(values).encode())),
        wrong_texts().map(with_told),
        altered(header).map(lambda values: safetensors_of(values, data)),
        damaged({"file": content}),
    )


def with_png_checksums(content: bytes) -> bytes:
    """A PNG with the right checksum at each of its chunks, as far as there are chunks."""
    made, position = bytearray(content), 8
    while position + 12 <= len(made):
        (length,) = struct.unpack_from(">I", made, position)
        end = position + 8 + length
        if end + 4 > len(made):
            break
        struct.pack_into(">I", made, end, zlib.crc32(made[position + 4 : end]))
        position = end + 4
    return bytes(made)


def answer(read: Callable[[], object], *errors: type[Exception]) -> None:
    """Read a damaged file: it gives a value, or exactly one of these errors with one sentence. Neither takes long."""
    started = time.process_time()
    refused: Exception | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            warnings.simplefilter("error", RuntimeWarning)
            read()
    except errors as error:
        refused = error
    if refused is not None:
        # A UnicodeDecodeError is a ValueError, too, but no sentence for a user.
        assert type(refused) in errors or isinstance(refused, OSError), f"{type(refused).__name__}: {refused}"
        sentence = str(refused)
        assert sentence.strip()
        assert len(sentence.splitlines()) == 1, sentence
        assert len(sentence) < 2000, f"a sentence of {len(sentence)} characters"
    assert time.process_time() - started < CPU_SECONDS


def peak_mb() -> float:
    """The most memory that this process has ever held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
