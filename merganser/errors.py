"""What ends a command: one clear sentence, and a code for the shell."""

WRONG = 1  # it could not be done
MISUSED = 2  # the command line or a setting is wrong


class Trouble(Exception):
    """A command cannot go on. The message says why and what to do, without a final stop."""

    def __init__(self, message: str, *, code: int = WRONG) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
