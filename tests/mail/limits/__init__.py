"""Tests of mail: limits."""
