"""Connections to the database: addresses, settings, failures and waiting."""
