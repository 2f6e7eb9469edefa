"""Schema of messages, labels and threads."""
