"""Helpers of tests: differential."""
