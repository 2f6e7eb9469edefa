"""Execution of compiled Sieve scripts."""
