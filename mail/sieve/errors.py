"""Errors of a Sieve script at compile time and at run time."""

from collections.abc import Sequence
from typing import NamedTuple

from mail.sieve.actions import ScriptTraceStep


class ScriptProblem(NamedTuple):
    """A problem with its position; line and column begin at 1."""

    line: int
    column: int
    message: str


class SieveError(Exception):
    """The script does not compile.

    `line`, `column` and `message` are those of the first problem.
    """

    def __init__(self, problems: Sequence[ScriptProblem]) -> None:
        self.problems = tuple(problems)
        self.line, self.column, self.message = self.problems[0]
        super().__init__(f"line {self.line}, column {self.column}: {self.message}")


class SieveRunError(Exception):
    """The script can't continue with this message, which must be kept then.

    The position is that of the command or test. `script` is the name of an included script, "" for
    the main one. `trace` has the steps before the error.
    """

    def __init__(self, line: int, column: int, message: str, *, script: str = "") -> None:
        self.line, self.column, self.message, self.script = line, column, message, script
        self.trace: tuple[ScriptTraceStep, ...] = ()
        super().__init__(f"line {line}, column {column}: {message}")
