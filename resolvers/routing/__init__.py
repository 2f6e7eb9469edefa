"""Operations on routes of outgoing mail."""
