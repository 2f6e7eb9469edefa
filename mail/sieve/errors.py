"""What can be wrong with a script, before it runs and while it does."""

from collections.abc import Sequence
from typing import NamedTuple

from mail.sieve.actions import Traced


class Problem(NamedTuple):
    """What is wrong, and where; both counts begin with 1."""

    line: int
    column: int
    message: str


class SieveError(Exception):
    """The script does not compile; `line`, `column` and `message` are of its first problem."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        self.line, self.column, self.message = self.problems[0]
        super().__init__(f"line {self.line}, column {self.column}: {self.message}")


class RunError(Exception):
    """The script cannot go on with this message, which is then kept as if there were none.

    The place is that of the command or test, in the script of the name `script` where it was
    included, "" in the one that was run. The trace says what went before.
    """

    def __init__(self, line: int, column: int, message: str, *, script: str = "") -> None:
        self.line, self.column, self.message, self.script = line, column, message, script
        self.trace: tuple[Traced, ...] = ()
        super().__init__(f"line {line}, column {column}: {message}")
