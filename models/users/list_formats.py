"""Formats of files that list accounts."""

from enum import StrEnum


class UserFileFormat(StrEnum):
    """How a file lists accounts."""

    CSV = "CSV"
    JSON_LINES = "JSON_LINES"
