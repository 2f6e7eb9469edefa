"""Descriptions of arguments and of enum values."""
