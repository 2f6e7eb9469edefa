"""Operations on filters and Sieve scripts."""
