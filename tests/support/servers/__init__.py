"""Helpers of tests: servers."""
