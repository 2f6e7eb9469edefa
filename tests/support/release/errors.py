"""The error of a release that can't be made."""


class ReleaseError(Exception):
    """A release can't be made. The text says why, and what to do."""
