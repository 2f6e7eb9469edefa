"""Tests of the outbound queue and rate limits."""
