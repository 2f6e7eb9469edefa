"""Filters of message lists."""
