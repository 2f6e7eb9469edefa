"""Tables of filters and Sieve scripts."""
