"""Tests of bulk messages."""
