"""Operations on automatic replies."""
