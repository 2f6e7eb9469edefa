"""Envelopes, DSN parameters and delivery jobs."""
