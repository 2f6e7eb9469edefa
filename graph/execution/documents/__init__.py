"""Cache, validation and cost of GraphQL documents."""
