"""Tests of delivery e2e."""
