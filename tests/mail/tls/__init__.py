"""Tests of mail: tls."""
