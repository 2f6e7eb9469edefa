"""Operations on search and saved searches."""
