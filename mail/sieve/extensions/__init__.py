"""Commands and extensions of Sieve."""
