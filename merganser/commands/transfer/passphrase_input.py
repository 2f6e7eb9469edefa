"""Read the passphrase of an export from stdin."""

import sys


def read_passphrase(*, stdin: bool) -> str | None:
    """Read the first line of stdin if the passphrase is there; None otherwise."""
    return sys.stdin.readline().rstrip("\r\n") if stdin else None
