"""Tables of composing and sending messages."""
