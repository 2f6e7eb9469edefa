"""Rules that hold for the whole schema and code base."""
