"""Position of a token in the text of a script."""

from typing import NamedTuple


class Place(NamedTuple):
    """Where something stands in a script; both counts begin with 1, columns are characters."""

    line: int
    column: int


START = Place(1, 1)  # of what code has built, too
