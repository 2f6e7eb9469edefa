"""Schema of the outbound queue and rate limits."""
