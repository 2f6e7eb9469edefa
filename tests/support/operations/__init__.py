"""Helpers of tests: operations."""
