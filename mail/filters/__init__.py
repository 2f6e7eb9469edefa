"""Compilation and execution of filters and Sieve scripts."""
