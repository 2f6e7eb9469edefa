"""Tests of hostile clients e2e."""
