"""Usage counters and statistics."""
