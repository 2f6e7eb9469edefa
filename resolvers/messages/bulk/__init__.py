"""Changes of many messages at once."""
