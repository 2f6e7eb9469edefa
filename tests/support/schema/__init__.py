"""The GraphQL schema, its naming rules and access matrix, and sample inputs for tests."""
