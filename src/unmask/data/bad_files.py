"""When files that cannot be read are too many: one rule and one sentence for all that reads images."""

from __future__ import annotations

MIN_FILES_TO_JUDGE = 20
"""So many files, or all, must have been looked at before their share of bad ones means anything."""


class TooManyBadFiles(ValueError):
    """So many files cannot be read that what is left is no longer what the user meant to use."""


def are_too_many(bad: int, *, seen: int, total: int, most: float) -> bool:
    """Whether more than the share `most` of the `seen` files, of `total` in all, are bad."""
    return seen >= min(MIN_FILES_TO_JUDGE, total) and bad > most * seen


def too_many(bad: int, *, seen: int, most: float, example: str) -> TooManyBadFiles:
    """The error that says so; `example` names a file and its reason, "" none."""
    return TooManyBadFiles(
        f"{bad} of the {seen} files read so far cannot be used (at most {most:.0%} may be bad)"
        + (f", for example {example}" if example else "")
    )
