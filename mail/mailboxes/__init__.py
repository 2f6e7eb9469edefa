"""Mailbox names, paths and special uses."""
