"""Tests of recovery e2e."""
