"""Spam verdicts, sender rules and greylisting."""
