"""Commands about nodes and the users that they serve."""
