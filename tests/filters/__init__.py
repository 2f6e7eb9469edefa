"""Tests of filters and Sieve scripts."""
