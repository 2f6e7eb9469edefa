"""Schema of the change stream."""
