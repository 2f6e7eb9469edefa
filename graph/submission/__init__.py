"""Schema of composing and sending messages."""
