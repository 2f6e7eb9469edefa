"""Lengths of the runs between two separators."""

from typing import Any, AnyStr


def longer(text: AnyStr, mark: AnyStr, most: int) -> bool:
    """True if a run between two separators is longer than `max_length`.

    The search goes backwards from the longest allowed end of a run, since splitting is slower.
    """
    rfind: Any = text.rfind  # of str and bytes
    at = 0
    while len(text) - at > most:
        found = rfind(mark, at, at + most + len(mark))
        if found < 0:
            return True
        at = found + len(mark)
    return False
