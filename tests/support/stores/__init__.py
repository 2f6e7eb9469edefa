"""Helpers of tests: stores."""
