"""Run the commands that build, run and remove images."""

import subprocess

SHOWN_ERROR_LINES = 30


class ImageError(Exception):
    """A command that failed with its last lines of output, or a program that is missing."""


def run_command(*command: str) -> str:
    """Run a command and return its standard output. Raises ImageError if it fails."""
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if result.returncode:
        lines = (result.stdout + result.stderr).splitlines()[-SHOWN_ERROR_LINES:]
        raise ImageError("\n".join([f"{' '.join(command[:2])} … failed:", *lines]))
    return result.stdout


def command_succeeds(*command: str) -> bool:
    """Run a command. True if it exits with 0."""
    try:
        run_command(*command)
    except ImageError:
        return False
    return True
