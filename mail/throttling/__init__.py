"""Failures of clients, and the bans of their networks."""
