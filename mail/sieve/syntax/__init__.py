"""Sieve lexer, parser and printer."""
