"""Sieve interpreter."""
