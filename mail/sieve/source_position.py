"""Position of a token in the text of a script."""

from typing import NamedTuple


class SourcePosition(NamedTuple):
    """A position in a script. Line and column begin at 1; columns count characters."""

    line: int
    column: int


SCRIPT_START = SourcePosition(1, 1)  # of what code has built, too
