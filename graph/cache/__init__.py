"""Caches and pending writes: types, the query and mutations."""
