"""Helpers of tests: schema."""
