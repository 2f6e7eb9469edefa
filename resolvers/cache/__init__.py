"""Caches and pending writes of all processes: lists, flushes and removal."""
