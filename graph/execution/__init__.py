"""Execution of GraphQL operations within their limits."""
