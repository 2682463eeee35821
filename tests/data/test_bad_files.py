"""When files that cannot be read are too many."""

from __future__ import annotations

import pytest

from unmask.data.bad_files import MIN_FILES_TO_JUDGE, are_too_many, too_many


@pytest.mark.parametrize(
    ("bad", "seen", "total", "expected"),
    [
        (10, MIN_FILES_TO_JUDGE - 1, 1000, False),  # nothing can be said yet
        (10, MIN_FILES_TO_JUDGE, 1000, True),
        (2, MIN_FILES_TO_JUDGE, 1000, False),  # just the share that is allowed
        (3, MIN_FILES_TO_JUDGE, 1000, True),
        (1, 5, 5, True),  # all were seen
    ],
)
def test_a_share_is_judged_once_enough_or_all_were_seen(bad: int, seen: int, total: int, expected: bool) -> None:
    assert are_too_many(bad, seen=seen, total=total, most=0.1) is expected


def test_the_sentence_names_an_example_where_there_is_one() -> None:
    said = "3 of the 20 files read so far cannot be used (at most 10% may be bad)"
    assert str(too_many(3, seen=20, most=0.1, example="")) == said
    assert (
        str(too_many(3, seen=20, most=0.1, example="a.jpg: it is empty")) == f"{said}, for example a.jpg: it is empty"
    )
