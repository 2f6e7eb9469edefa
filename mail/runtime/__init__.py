"""Background loops and worker threads."""
