"""The command `merganser`. Each failure is one sentence on stderr and an exit code."""

import gc
import logging
import os
import sys

import typer

from merganser.commands.command_line import create_command_line
from merganser.errors import EXIT_FAILURE, CommandError
from models.errors import InvalidInput, RequestError

OWNER_ONLY_UMASK = 0o077  # files of the server contain mail
STARTUP_GC_THRESHOLDS = (
    50_000,
    20,
    50,
)  # imported modules stay: collections during the imports cost a sixth of the start time


def main() -> int:
    """Run the command line and return its exit code. Errors are printed, not raised."""
    os.umask(OWNER_ONLY_UMASK)
    gc.set_threshold(*STARTUP_GC_THRESHOLDS)
    try:
        exit_code = create_command_line()(standalone_mode=False)
    except CommandError as command_error:
        return _print_error(command_error.message, command_error.exit_code)
    except RequestError as refusal:
        return _print_error(
            "; ".join(map(_message_with_field_path, refusal.all_errors)), EXIT_FAILURE
        )
    except typer.TyperException as usage_error:
        return _print_error(usage_error.format_message().strip().rstrip("."), usage_error.exit_code)
    except typer.Abort:
        return _print_error("given up", EXIT_FAILURE)
    except Exception as problem:  # noqa: BLE001 - the process ends here, so the error must be reported
        return _report_unexpected_error(problem)
    return exit_code if isinstance(exit_code, int) else 0


def _message_with_field_path(error: RequestError) -> str:
    """The message of an error, after the path of the input field if the error names one."""
    field_path = f"{'.'.join(error.path)}: " if isinstance(error, InvalidInput) else ""
    return field_path + error.message


def _report_unexpected_error(error: Exception) -> int:
    """Print an unexpected error and return its exit code.

    An error that is not of the database or the system is a bug: its traceback is logged.
    """
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415 - keeps --help fast

    from models.store.outages import storage_failure  # noqa: PLC0415

    if failure := storage_failure(error):
        return _print_error(f"it could not be done: {failure.message}", EXIT_FAILURE)
    first_line = next(iter(str(getattr(error, "orig", error)).strip().splitlines()), "")
    if isinstance(error, DBAPIError | OSError):
        return _print_error(
            f"it could not be done: {first_line or type(error).__name__}", EXIT_FAILURE
        )
    logging.getLogger("merganser").error("a command broke", exc_info=error)
    return _print_error(
        f"it broke on our side, please tell us: {type(error).__name__} {first_line}", EXIT_FAILURE
    )


def _print_error(message: str, exit_code: int) -> int:
    """Print an error message to stderr and return the exit code."""
    if message:  # empty after the help text
        typer.echo(f"merganser: {message}", err=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
