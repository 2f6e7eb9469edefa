"""Tests of TLS certificates."""
