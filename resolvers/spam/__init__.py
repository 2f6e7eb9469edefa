"""Operations on spam filtering, sender rules and quarantine."""
