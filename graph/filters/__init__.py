"""Schema of filters and Sieve scripts."""
