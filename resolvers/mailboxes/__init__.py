"""Operations on mailboxes and shares."""
