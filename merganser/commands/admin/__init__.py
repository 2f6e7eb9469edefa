"""Commands about stored settings, trusted documents, and the keys of secrets."""
