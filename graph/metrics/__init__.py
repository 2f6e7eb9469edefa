"""Schema of usage counters and statistics."""
