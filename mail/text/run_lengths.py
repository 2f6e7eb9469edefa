"""Lengths of the runs between two separators."""

from typing import Any, AnyStr


def has_longer_run(text: AnyStr, separator: AnyStr, max_length: int) -> bool:
    """True if a run between two separators is longer than `max_length`.

    The search goes backwards from the longest allowed end of a run, since splitting is slower.
    """
    rfind: Any = text.rfind  # of str and bytes
    run_start = 0
    while len(text) - run_start > max_length:
        run_end = rfind(separator, run_start, run_start + max_length + len(separator))
        if run_end < 0:
            return True
        run_start = run_end + len(separator)
    return False
