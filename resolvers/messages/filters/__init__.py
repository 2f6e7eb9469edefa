"""Filter conditions of message lists and selections."""
