"""The version of the installed program."""

from functools import cache
from importlib.metadata import version


@cache
def installed_version() -> str:
    """Return the version of Merganser."""
    return version("merganser")
