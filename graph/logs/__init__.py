"""GraphQL types, queries and subscriptions of the log."""
