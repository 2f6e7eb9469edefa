"""Tables of messages, labels and threads."""
