"""Tests of mail: mime."""
