"""Tests of mail: inbound."""
