"""Journal of changes and wake-ups between processes."""
