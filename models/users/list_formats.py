"""Formats of files with lists of users."""

from enum import StrEnum


class UserFileFormat(StrEnum):
    """The format of a file with a list of users."""

    CSV = "CSV"
    JSON_LINES = "JSON_LINES"
