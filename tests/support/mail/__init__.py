"""Helpers of tests: mail."""
