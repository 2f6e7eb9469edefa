"""Clients of SCIM for tests."""
