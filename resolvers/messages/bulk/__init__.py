"""Changes of many messages."""
