"""Tests of mail: text."""
