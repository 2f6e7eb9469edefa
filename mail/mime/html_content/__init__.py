"""Parsing and sanitizing of HTML."""
