"""Helpers of tests: targets."""
