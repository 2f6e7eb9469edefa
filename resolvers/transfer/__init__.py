"""Operations on export and import of accounts."""
