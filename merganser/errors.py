"""The error that ends a command, and exit codes for the shell."""

WRONG = 1  # the command failed
MISUSED = 2  # the command line or a setting is wrong


class Trouble(Exception):
    """An error that ends a command.

    The message says in one sentence why, and what to do; it has no full stop at its end.
    """

    def __init__(self, message: str, *, code: int = WRONG) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
