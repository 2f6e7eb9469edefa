"""The command `merganser`: every failure is one sentence on stderr and a code for the shell."""

import gc
import logging
import os
import sys

import typer

from merganser.commands.command_line import app
from merganser.errors import WRONG, Trouble
from models.errors import Invalid, Refused

PRIVATE = 0o077  # what we make is for its owner alone: it is mail
IMPORTING = (
    50_000,
    20,
    50,
)  # modules stay: to look through them time and again is a sixth of a start


def main() -> int:
    """Do what the command line says; returns the code for the shell."""
    os.umask(PRIVATE)
    gc.set_threshold(*IMPORTING)
    try:
        code = app()(standalone_mode=False)
    except Trouble as trouble:
        return _told(trouble.message, trouble.code)
    except Refused as refusal:
        return _told("; ".join(map(_said, refusal.each)), WRONG)
    except typer.TyperException as wrong:
        return _told(wrong.format_message().strip().rstrip("."), wrong.exit_code)
    except typer.Abort:
        return _told("given up", WRONG)
    except Exception as problem:  # noqa: BLE001 - the process ends here: nobody else would tell
        return _broken(problem)
    return code if isinstance(code, int) else 0


def _said(refusal: Refused) -> str:
    where = f"{'.'.join(refusal.path)}: " if isinstance(refusal, Invalid) else ""
    return where + refusal.message


def _broken(problem: Exception) -> int:
    """Say what came in between. A bug of ours leaves its traceback in the log as well."""
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415 - so that --help is quick

    from models.store.outages import unavailable  # noqa: PLC0415

    if failure := unavailable(problem):
        return _told(f"it could not be done: {failure.message}", WRONG)
    words = next(iter(str(getattr(problem, "orig", problem)).strip().splitlines()), "")
    if isinstance(problem, DBAPIError | OSError):
        return _told(f"it could not be done: {words or type(problem).__name__}", WRONG)
    logging.getLogger("merganser").error("a command broke", exc_info=problem)
    return _told(f"it broke on our side, please tell us: {type(problem).__name__} {words}", WRONG)


def _told(sentence: str, code: int) -> int:
    if sentence:  # else help was shown
        typer.echo(f"merganser: {sentence}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
