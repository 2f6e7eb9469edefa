"""Tests of requests to all processes."""
