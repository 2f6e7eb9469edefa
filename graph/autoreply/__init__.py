"""Schema of automatic replies."""
