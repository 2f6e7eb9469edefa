"""GraphQL operations and their helpers for tests, by area."""
