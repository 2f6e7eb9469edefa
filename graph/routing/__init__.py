"""Schema of routes of outgoing mail."""
