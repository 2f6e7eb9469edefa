"""Text index of messages."""
