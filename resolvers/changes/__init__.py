"""Operations on the change stream."""
