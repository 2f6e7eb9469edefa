"""Tests of mail: outbound."""
