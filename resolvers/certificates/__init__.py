"""Operations on TLS certificates."""
