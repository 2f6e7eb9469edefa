"""Benchmarks of one subject each."""
