"""ACME servers for tests."""
