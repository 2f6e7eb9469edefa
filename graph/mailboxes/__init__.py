"""Schema of mailboxes and shares."""
