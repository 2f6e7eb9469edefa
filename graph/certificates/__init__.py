"""Schema of TLS certificates."""
