"""Tables of routes of outgoing mail."""
