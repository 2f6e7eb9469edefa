"""The command `merganser`: every failure is one sentence on stderr and a code for the shell."""

import os
import sys

import typer

from merganser.commands import app
from merganser.trouble import WRONG, Trouble
from models.errors import Invalid, Refused

PRIVATE = 0o077  # what we make is for its owner alone: it is mail


def main() -> int:
    """Do what the command line says; returns the code for the shell."""
    os.umask(PRIVATE)
    try:
        code = app()(standalone_mode=False)
    except Trouble as trouble:
        return _told(trouble.message, trouble.code)
    except Refused as refusal:
        where = f"{'.'.join(refusal.path)}: " if isinstance(refusal, Invalid) else ""
        return _told(where + refusal.message, WRONG)
    except typer.TyperException as wrong:
        return _told(wrong.format_message().strip().rstrip("."), wrong.exit_code)
    except typer.Abort:
        return _told("given up", WRONG)
    return code if isinstance(code, int) else 0


def _told(sentence: str, code: int) -> int:
    if sentence:  # else help was shown
        typer.echo(f"merganser: {sentence}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
