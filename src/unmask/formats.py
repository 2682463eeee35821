"""The formats of all that unmask writes and reads again: one number for each kind of file.

A number goes up when files of before can no longer be read as they are; who raises it teaches the reader to turn the
old form into the new one. New fields with a default need no new number: what an older file lacks takes the default,
which must compute what was computed before there was the field. `tests/kept` holds files of every version, which must
stay readable.
"""

from __future__ import annotations

from unmask.errors import in_short

FORMATS = {
    "run configuration": 1,
    "checkpoint": 1,
    "encoder": 1,
    "classifier": 1,
    "segmenter": 1,
    "detector": 1,
    "tokenizer": 1,
    "features": 1,
    "shard index": 1,
}


def objection(kind: str, written: object) -> str | None:
    """Why a file that says it is of format `written` cannot be read, for after its name; None where it can be."""
    known = FORMATS[kind]
    if written == known:
        return None
    newer = isinstance(written, int) and written > known
    sentence = f"has {kind} format {in_short(written)}, this version reads {known}"
    return f"{sentence}: a newer unmask wrote it" if newer else sentence
