"""Tests of GraphQL execution."""
