"""Stored messages and their content."""
