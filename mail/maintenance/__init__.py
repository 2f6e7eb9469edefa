"""Housekeeping, journal retention, snoozing and restore detection of a running server."""
