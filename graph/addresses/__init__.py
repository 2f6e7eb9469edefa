"""Schema of addresses, forwards and rewriting rules."""
