"""Tests of mail: network."""
