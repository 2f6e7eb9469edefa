"""Helpers of tests: clients."""
