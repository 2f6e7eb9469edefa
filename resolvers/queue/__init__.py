"""Operations on the outbound queue and rate limits."""
