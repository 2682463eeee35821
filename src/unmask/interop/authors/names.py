"""Tables of names: what the authors call a parameter, and what it is called here.

A table is a tuple of pairs (theirs, ours). A star stands for any run of characters, the same on both sides. The first
pair that fits wins. Ours is None where the authors build something that nothing uses.
"""

from __future__ import annotations

import re

NameTable = tuple[tuple[str, str | None], ...]


def our_name(table: NameTable, theirs: str) -> str | None:
    """Our name of the authors' parameter `theirs`; None where unused; KeyError where the table has no such row."""
    for pattern, replacement in table:
        match = re.fullmatch(re.escape(pattern).replace(r"\*", "(.*)"), theirs)
        if match:
            if replacement is None:
                return None
            for part in match.groups():
                replacement = replacement.replace("*", part, 1)
            return replacement
    raise KeyError(theirs)
