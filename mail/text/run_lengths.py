"""How long what stands between two marks is."""

from typing import Any, AnyStr


def longer(text: AnyStr, mark: AnyStr, most: int) -> bool:
    """Whether more than `most` of a text stand anywhere without this mark.

    It goes from the last mark that is near enough to the next: to divide the text takes longer.
    """
    rfind: Any = text.rfind  # of both kinds
    at = 0
    while len(text) - at > most:
        found = rfind(mark, at, at + most + len(mark))
        if found < 0:
            return True
        at = found + len(mark)
    return False
