"""Operations on connectors that fetch mail from other servers."""
