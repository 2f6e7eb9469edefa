"""Schema of stored files and uploads."""
