"""Operations on stored files and uploads."""
