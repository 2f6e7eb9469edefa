"""Construction of outgoing messages."""
