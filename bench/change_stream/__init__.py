"""Watchers of the change stream, and the proof that no event is lost."""
