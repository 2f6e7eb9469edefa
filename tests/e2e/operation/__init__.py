"""Tests of operation e2e."""
