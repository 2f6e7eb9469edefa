"""Errors of backups and restores."""


class BackupError(Exception):
    """A backup or restore that can't be done or continued. The message says why in a sentence."""
