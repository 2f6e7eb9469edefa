"""Syntax of mail addresses."""
