"""Routes of outgoing mail for tests: operations and their results."""
