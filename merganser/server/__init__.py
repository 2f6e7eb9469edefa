"""A server as a whole: its identity, and who may use the store."""
