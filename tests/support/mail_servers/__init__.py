"""Helpers of tests: mail servers."""
