"""Tables of addresses, forwards and rewriting rules."""
