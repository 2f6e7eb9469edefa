"""Schema of spam filtering, sender rules and quarantine."""
