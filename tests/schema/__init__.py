"""Rules that hold for the whole schema."""
