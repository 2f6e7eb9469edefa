"""Tables of stored files and uploads."""
