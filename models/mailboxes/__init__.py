"""Tables of mailboxes and shares."""
