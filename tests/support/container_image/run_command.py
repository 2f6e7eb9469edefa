"""Run the commands that build, run and remove images."""

import subprocess

SHOWN_ERROR_LINES = 30


class ImageError(Exception):
    """A command that failed with its last lines of output, or a program that is missing."""


def run_command(*command: str, timeout: float | None = None) -> str:
    """Run a command and return its standard output. Raises ImageError if it fails.

    `timeout` is in seconds. Without it, the command may take any time, such as a build.
    """
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as problem:
        raise ImageError(f"{' '.join(command[:2])} … took longer than {timeout} s") from problem
    if result.returncode:
        lines = (result.stdout + result.stderr).splitlines()[-SHOWN_ERROR_LINES:]
        raise ImageError("\n".join([f"{' '.join(command[:2])} … failed:", *lines]))
    return result.stdout


def is_command_successful(*command: str, timeout: float | None = None) -> bool:
    """Run a command. True if it exits with 0 in time."""
    try:
        run_command(*command, timeout=timeout)
    except ImageError:
        return False
    return True
