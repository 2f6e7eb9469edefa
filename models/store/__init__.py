"""Connections to the database: addresses, settings, failures, waiting and retries."""
