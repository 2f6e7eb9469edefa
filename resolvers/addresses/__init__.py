"""Operations on addresses, forwards and rewriting rules."""
