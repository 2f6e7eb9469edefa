"""Helpers of tests: attacks."""
