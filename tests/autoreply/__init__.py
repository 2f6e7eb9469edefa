"""Tests of automatic replies."""
