"""Position of a token in the text of a script."""

from typing import NamedTuple


class Place(NamedTuple):
    """A position in a script. Line and column begin at 1; columns count characters."""

    line: int
    column: int


START = Place(1, 1)  # of what code has built, too
