"""Tests of mail: sieve."""
