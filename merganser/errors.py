"""The error that ends a command, and exit codes for the shell."""

EXIT_FAILURE = 1  # the command failed
EXIT_USAGE = 2  # the command line or a setting is wrong


class CommandError(Exception):
    """An error that ends a command.

    The message says in one sentence why, and what to do; it has no full stop at its end.
    """

    def __init__(self, message: str, *, exit_code: int = EXIT_FAILURE) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


def user_not_found_error(username_or_address: str) -> CommandError:
    """The error of a command for an unknown user, in the words of the operations' NotFound."""
    return CommandError(f"User not found: {username_or_address}.")
