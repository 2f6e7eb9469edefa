"""Identities: the sender addresses of users with their names and settings."""
