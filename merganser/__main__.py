"""The command `merganser`. Each failure is one sentence on stderr and an exit code."""

import gc
import logging
import os
import sys

import typer

from merganser.commands.command_line import app
from merganser.errors import WRONG, Trouble
from models.errors import Invalid, Refused

PRIVATE = 0o077  # files of the server contain mail
IMPORTING = (
    50_000,
    20,
    50,
)  # imported modules stay: collections during the imports cost a sixth of the start time


def main() -> int:
    """Run the command line and return its exit code. Errors are printed, not raised."""
    os.umask(PRIVATE)
    gc.set_threshold(*IMPORTING)
    try:
        code = app()(standalone_mode=False)
    except Trouble as command_error:
        return _told(command_error.message, command_error.code)
    except Refused as refusal:
        return _told("; ".join(map(_said, refusal.each)), WRONG)
    except typer.TyperException as usage_error:
        return _told(usage_error.format_message().strip().rstrip("."), usage_error.exit_code)
    except typer.Abort:
        return _told("given up", WRONG)
    except Exception as problem:  # noqa: BLE001 - the process ends here, so the error must be reported
        return _broken(problem)
    return code if isinstance(code, int) else 0


def _said(refusal: Refused) -> str:
    """The message of an error, after the path of the input field if the error names one."""
    where = f"{'.'.join(refusal.path)}: " if isinstance(refusal, Invalid) else ""
    return where + refusal.message


def _broken(problem: Exception) -> int:
    """Print an unexpected error and return its exit code.

    An error that is not of the database or the system is a bug: its traceback is logged.
    """
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415 - keeps --help fast

    from models.store.outages import unavailable  # noqa: PLC0415

    if failure := unavailable(problem):
        return _told(f"it could not be done: {failure.message}", WRONG)
    words = next(iter(str(getattr(problem, "orig", problem)).strip().splitlines()), "")
    if isinstance(problem, DBAPIError | OSError):
        return _told(f"it could not be done: {words or type(problem).__name__}", WRONG)
    logging.getLogger("merganser").error("a command broke", exc_info=problem)
    return _told(f"it broke on our side, please tell us: {type(problem).__name__} {words}", WRONG)


def _told(sentence: str, code: int) -> int:
    """Print an error message to stderr and return the exit code."""
    if sentence:  # empty after the help text
        typer.echo(f"merganser: {sentence}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
