"""Benchmarks against a hand-written baseline server, and soaks that kill servers."""
