"""Helpers of tests: accounts."""
