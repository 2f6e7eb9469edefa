"""Saving, sending and restoring of drafts."""
