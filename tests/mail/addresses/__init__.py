"""Tests of addresses, forwards and rewriting rules."""
