"""The command `merganser`. Each failure is one sentence on stderr and an exit code."""

import gc
import os
import sys

import typer

from merganser.commands.command_line import create_command_line
from merganser.errors import EXIT_FAILURE, CommandError
from merganser.server.process_memory import GC_THRESHOLDS
from models.errors import InvalidInput, RequestError

OWNER_ONLY_UMASK = 0o077  # files of the server contain mail


def main() -> int:
    """Run the command line and return its exit code. Errors are printed, not raised."""
    os.umask(OWNER_ONLY_UMASK)
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        exit_code = create_command_line()(standalone_mode=False)
    except CommandError as command_error:
        return _print_error(command_error.message, command_error.exit_code)
    except RequestError as refusal:
        return _print_error(
            " ".join(map(_message_with_field_path, refusal.all_errors)), EXIT_FAILURE
        )
    except typer.TyperException as usage_error:
        return _print_error(_usage_error_text(usage_error), usage_error.exit_code)
    except typer.Abort:
        return _print_error("Aborted.", EXIT_FAILURE)
    except Exception as problem:  # noqa: BLE001 - the process ends here, so the error must be reported
        # SQLAlchemy is slow to import, and commands such as `--help` do not need it
        from merganser import unexpected_errors  # noqa: PLC0415

        return _print_error(unexpected_errors.describe_error_and_log_if_bug(problem), EXIT_FAILURE)
    return exit_code if isinstance(exit_code, int) else 0


def _usage_error_text(usage_error: typer.TyperException) -> str:
    """The message of an error of the command line, without the prefix of the value's parser."""
    text = usage_error.format_message().strip().rstrip(".")
    return text.replace(": Value error, ", ": ", 1)


def _message_with_field_path(error: RequestError) -> str:
    """The message of an error, after the path of the input field if the error names one."""
    field_path = f"{'.'.join(error.path)}: " if isinstance(error, InvalidInput) else ""
    return field_path + error.message


def _print_error(message: str, exit_code: int) -> int:
    """Print an error message to stderr and return the exit code."""
    if message:  # empty after the help text
        typer.echo(f"merganser: {message}", err=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
