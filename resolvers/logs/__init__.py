"""Read and follow the log store."""
