"""Shared GraphQL types: connections, errors, scalars, references."""
