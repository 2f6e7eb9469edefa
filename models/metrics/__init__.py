"""Usage counters of each process, and stored statistics."""
